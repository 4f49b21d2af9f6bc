"""`accelerate launch -m tunekit train plan.yaml` on two CPU ranks trains as one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tunekit.methods.lora import Lora
from tunekit.plan import DataSpec, Plan

ACCELERATE = {
    "compute_environment": "LOCAL_MACHINE",
    # `accelerate launch --cpu --num_processes 2` starts one process in silence; this starts two gloo ranks.
    "distributed_type": "MULTI_GPU",
    "num_machines": 1,
    "num_processes": 2,
    "machine_rank": 0,
    "mixed_precision": "no",
    "use_cpu": False,
}


def write_plan(folder: Path, tiny_classifier: str, *, ranks: int, batch: int, accumulation: int = 1) -> Path:
    rows = folder / "rows.jsonl"
    if not rows.exists():
        words = ["good", "bad", "fine", "poor", "great", "awful"]
        made = [{"text": f"{words[i % 6]} {words[(i * 5 + 1) % 6]} number {i % 11}", "label": i % 2} for i in range(64)]
        rows.write_text("".join(json.dumps(r) + "\n" for r in made))
    plan = Plan(
        model=tiny_classifier,
        task="sequence-classification",
        method=Lora(r=4),
        data=DataSpec(path=str(rows)),
        output_dir=str(folder / f"run-{ranks}-{batch}-{accumulation}"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        num_train_epochs=4,
        num_processes=ranks,
        sharding="ddp" if ranks > 1 else None,
    )
    return plan.save(folder / f"plan-{ranks}-{batch}-{accumulation}.yaml")


def train(plan: Path, ranks: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunekit", "train", str(plan)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if ranks > 1:
        config = plan.with_name("accelerate.yaml")
        config.write_text(yaml.safe_dump(ACCELERATE))
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        command = [*launcher, "-m", "tunekit", "train", str(plan)]
        env["ACCELERATE_USE_CPU"] = "true"
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, cwd=plan.parent)


def losses(plan: Path) -> list[float]:
    record = json.loads((Path(Plan.load(plan).output_dir) / "record.json").read_text())
    return [entry["loss"] for entry in record["logs"] if "loss" in entry]


def learnt(plan: Path) -> dict[str, torch.Tensor]:
    return load_file(Path(Plan.load(plan).output_dir) / "adapter_model.safetensors")


@pytest.mark.slow
def test_two_ranks_and_accumulation_give_the_loss_curve_of_one_process(tmp_path: Path, tiny_classifier: str) -> None:
    one = write_plan(tmp_path, tiny_classifier, ranks=1, batch=8)
    accumulated = write_plan(tmp_path, tiny_classifier, ranks=1, batch=4, accumulation=2)
    two = write_plan(tmp_path, tiny_classifier, ranks=2, batch=4)
    for plan, ranks in ((one, 1), (accumulated, 1), (two, 2)):
        done = train(plan, ranks)
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(one)) == 4
    assert losses(accumulated) == pytest.approx(losses(one), rel=1e-4)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert losses(one)[-1] < losses(one)[0]
    for other in (accumulated, two):
        for name, tensor in learnt(one).items():
            assert torch.allclose(tensor, learnt(other)[name], atol=1e-4), name


def test_a_world_that_is_not_the_plans_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_classifier: str
) -> None:
    plan = write_plan(tmp_path, tiny_classifier, ranks=2, batch=4)
    done = train(plan, ranks=1)
    assert done.returncode == 2
    assert "world-size" in done.stderr
    assert "accelerate launch --num_processes 2" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not Path(Plan.load(plan).output_dir).exists()
