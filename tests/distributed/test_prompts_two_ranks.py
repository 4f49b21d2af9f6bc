"""Prompt learning on two CPU ranks, from a plan file through the launchers, trains as one process does, whole or in ZeRO-3's pieces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed.test_two_ranks import learnt, losses, train, write_plan

from tunekit.objectives.prompt_learning import PromptLearning
from tunekit.plan import Plan

OBJECTIVE = PromptLearning(
    templates=("{text} was {mask}", "a {mask} : {text}"), verbalizer={"0": ("bad", "poor"), "1": ("good fine",)}
)


def a_plan(folder: Path, model: str, ranks: int, batch: int, accumulation: int, sharding: str | None) -> Path:
    path = write_plan(folder, model, ranks=ranks, batch=batch, accumulation=accumulation)
    made = Plan.load(path).replace(objective=OBJECTIVE, sharding=sharding)
    made.save(path, overwrite=True)
    return path


def under_deepspeed(plan: Path) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    env.pop("ACCELERATE_USE_CPU", None)
    return subprocess.run(
        [sys.executable, *launch, "-m", "tunekit", "train", str(plan)], capture_output=True, text=True, timeout=240, env=env, cwd=plan.parent
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "zero3"])
def test_two_ranks_give_the_loss_curve_of_one_process(sharding: str, tmp_path: Path, tiny_masked: str) -> None:
    if sharding == "zero3":
        pytest.importorskip("deepspeed")
    alone = a_plan(tmp_path, tiny_masked, 1, 8, 1, None)
    together = a_plan(tmp_path, tiny_masked, 2, 2, 2, sharding)
    for path, run in ((alone, lambda p: train(p, 1)), (together, (lambda p: train(p, 2)) if sharding == "ddp" else under_deepspeed)):  # fmt: skip
        done = run(path)
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(alone)) == 4
    assert losses(together) == pytest.approx(losses(alone), rel=1e-4)
    for name, tensor in learnt(alone).items():
        assert torch.allclose(tensor, learnt(together)[name], atol=1e-4), name
