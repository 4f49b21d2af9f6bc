"""Two CPU ranks with the chunked loss learn what one process does by the plain one; packed rows among them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tunekit
from tunekit.methods.full import Full

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CELLS = [("ddp", False), ("ddp", True), ("zero3", False)]
CELLS = [c for c in CELLS if importlib.util.find_spec("deepspeed") is not None or c[0] == "ddp"]
ROWS = [{"prompt": "what is up ?" * (1 + i % 3), "completion": " the moon" * (1 + i % 4)} for i in range(31)]


def job(folder: Path, model: str, sharding: str | None, packing: bool) -> dict[str, str]:
    name = f"{sharding}-{packing}"
    plan = tunekit.Plan(
        model=model, task="causal-lm", method=Full(), data=tunekit.DataSpec(path=str(folder / "rows.jsonl")), output_dir=str(folder / f"run-{name}"),
        max_steps=4, learning_rate=0.05, optim="sgd", warmup=0.0, per_device_train_batch_size=4 if sharding else 8, num_processes=2 if sharding else 1,
        sharding=sharding, loss_kernel="chunked" if sharding else "plain", packing=packing, max_length=40,
    )  # fmt: skip
    return {"plan": str(plan.save(folder / f"{name}.yaml")), "result": str(folder / f"{name}.json")}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_decoder: str) -> dict[Any, Any]:
    folder = tmp_path_factory.mktemp("chunked")
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    jobs = {cell: job(folder, tiny_decoder, *cell) for cell in [*((None, p) for p in (False, True)), *CELLS]}
    script = str(Path(__file__).with_name("distillation_rank.py"))
    for alone, launch in (
        (True, []),
        (False, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]),
    ):
        path = folder / f"jobs-{alone}.json"
        path.write_text(json.dumps([j for c, j in jobs.items() if (c[0] is None) == alone]))
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, *launch, script, str(path)],
            capture_output=True,
            text=True,
            timeout=500,
            env=env,
            cwd=folder,
        )
        assert done.returncode == 0, done.stderr[-6000:]
    return {cell: {**json.loads(Path(j["result"]).read_text()), **j} for cell, j in jobs.items()}


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_two_ranks_learn_what_one_process_does(cell: tuple[str, bool], results: dict[Any, Any]) -> None:
    one, two = results[None, cell[1]], results[cell]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    weights = [load_file(Path(tunekit.Plan.load(r["plan"]).output_dir) / "model.safetensors") for r in (one, two)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=1e-3)
