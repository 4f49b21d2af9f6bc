"""Prompt learning on two CPU ranks, from a plan file, whole or divided by ZeRO, trains as one process does."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.test_two_ranks import learnt, losses, train, write_plan
from safetensors.torch import load_file

from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.objectives.prompt_learning import PromptLearning
from tunekit.plan import Plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TEMPLATES = ("{text} was {mask}", "a {mask} : {text}")
WORDS = {"0": ("bad", "poor"), "1": ("good fine",)}


def test_two_ranks_give_the_loss_curve_of_one_process(tmp_path: Path, tiny_masked: str) -> None:
    objective = PromptLearning(templates=TEMPLATES, verbalizer=WORDS)
    plans = []
    for ranks, batch, accumulation in ((1, 8, 1), (2, 2, 2)):
        path = write_plan(tmp_path, tiny_masked, ranks=ranks, batch=batch, accumulation=accumulation)
        Plan.load(path).replace(objective=objective).save(path, overwrite=True)
        done = train(path, ranks)
        assert done.returncode == 0, done.stderr[-3000:]
        plans.append(path)
    assert len(losses(plans[0])) == 4
    assert losses(plans[1]) == pytest.approx(losses(plans[0]), rel=1e-4)
    for name, tensor in learnt(plans[0]).items():
        assert torch.allclose(tensor, learnt(plans[1])[name], atol=1e-4), name


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize("side", ["masked", "decoder"])
def test_zero3_gives_the_loss_curve_of_one_process(
    side: str, tmp_path: Path, tiny_masked: str, tiny_decoder: str
) -> None:
    method, file = (Full(), "model.safetensors") if side == "masked" else (Lora(r=4), "adapter_model.safetensors")
    model, templates = (tiny_masked, TEMPLATES) if side == "masked" else (tiny_decoder, TEMPLATES[:1])
    objective = PromptLearning(templates=templates, verbalizer=WORDS)
    found: list[tuple[list[float], dict[str, Any]]] = []
    for ranks, batch in ((1, 8), (2, 4)):
        path = write_plan(tmp_path, model, ranks=ranks, batch=batch)
        plan = Plan.load(path).replace(
            objective=objective, method=method, sharding="zero3" if ranks > 1 else None, learning_rate=1e-3,
        )  # fmt: skip
        plan.save(path, overwrite=True)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "tunekit", "launch" if ranks > 1 else "train", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append((losses(path), load_file(Path(plan.output_dir) / file)))
    (alone, one), (together, two) = found
    assert together == pytest.approx(alone, rel=1e-3)
    assert one.keys() == two.keys()
    assert all(torch.allclose(value, two[name], atol=1e-3) for name, value in one.items())
