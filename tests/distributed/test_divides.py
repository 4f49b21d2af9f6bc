"""Processes that were started in a way that leaves DeepSpeed out are refused: each would train a whole copy."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tunekit

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("needs deepspeed", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_ranks_that_would_be_whole_copies_are_refused(tmp_path: Path, tiny_encoder: str) -> None:
    rows = [{"text": f"good number {i}", "label": i % 2} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = tunekit.Plan(
        model=tiny_encoder, task="sequence-classification", method=tunekit.methods.Full(), num_processes=2, sharding="zero3",
        data=tunekit.DataSpec(path=str(tmp_path / "rows.jsonl")), max_steps=1, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    plan.save(tmp_path / "plan.yaml")
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tunekit"]
    done = subprocess.run(
        [*launch, "train", str(tmp_path / "plan.yaml")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert "world-sharding" in said
    assert "a whole copy" in said
