"""One of two ranks is killed in the middle: the other ends, and the run goes on to the same weights."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import tunekit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NEEDS = {"zero2": "deepspeed", "zero3": "deepspeed", "fsdp": "torch"}


def write_plan(folder: Path, model: str, name: str, sharding: str) -> Path:
    words = ["good", "bad", "fine", "poor", "great", "awful"]
    made = [{"text": f"{words[i % 6]} {words[(i * 5 + 1) % 6]} number {i % 11}", "label": i % 2} for i in range(48)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    plan = tunekit.Plan(
        model=model, task="sequence-classification", method=tunekit.methods.Lora(r=4), learning_rate=1e-2, num_train_epochs=8,
        per_device_train_batch_size=4, data=tunekit.DataSpec(path=str(folder / "rows.jsonl")), num_processes=2,
        sharding=sharding, output_dir=str(folder / name),
    )  # fmt: skip
    return plan.save(folder / f"{name}.yaml")


def launch(plan: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tunekit", "launch", str(plan), *flags]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(plan: Path, *flags: str) -> None:
    process = launch(plan, *flags)
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said[-4000:]


def rank(process: subprocess.Popen[str], number: int) -> psutil.Process:
    """The process of a rank, told by its environment."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(number):
            return child
    raise AssertionError("no such rank")


@pytest.mark.parametrize("sharding", list(NEEDS))
def test_a_killed_rank_ends_the_run_which_goes_on_to_the_same_weights(
    sharding: str, tmp_path: Path, tiny_encoder: str
) -> None:
    if importlib.util.find_spec(NEEDS[sharding]) is None:
        pytest.skip(f"needs {NEEDS[sharding]}")
    whole, killed = (write_plan(tmp_path, tiny_encoder, name, sharding) for name in ("whole", "killed"))
    finish(whole)
    process, folder = launch(killed), tmp_path / "killed"
    while tunekit.last_checkpoint(folder) is None:
        assert process.poll() is None, process.communicate()[1][-4000:]
        time.sleep(0.02)
    rank(process, 1).send_signal(signal.SIGKILL)
    since = time.monotonic()
    _, said = process.communicate(timeout=60)
    print(f"{sharding}: the other rank and the launcher ended {time.monotonic() - since:.1f} s after the kill")
    assert process.returncode == 1
    assert "the others were ended" in said
    assert "--resume` goes on from checkpoint-" in said
    assert not (folder / "adapter_model.safetensors").exists(), "it had ended before it was killed"
    finish(killed, "--resume")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
def test_another_number_of_ranks_is_refused_in_words(tmp_path: Path) -> None:
    from tunekit.checkpoint import check_ranks, seal
    from tunekit.errors import UnsupportedError

    seal(tmp_path, num_processes=2, global_step=6)
    check_ranks(tmp_path, 2, divided=True)
    check_ranks(tmp_path, 4, divided=False)
    with pytest.raises(UnsupportedError, match=r"resume-ranks.*Resume on 2 processes"):
        check_ranks(tmp_path, 4, divided=True)
