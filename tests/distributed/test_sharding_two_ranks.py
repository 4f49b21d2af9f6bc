"""CPU ranks under every ZeRO stage and FSDP learn as one process does, and what they save reloads whole."""

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
from transformers import AutoModelForSequenceClassification

import tunekit
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("needs deepspeed", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHARDINGS: dict[str, dict[str, Any]] = {
    "ddp": {"sharding": "ddp"},
    "zero1": {"sharding": "zero1"},
    "zero2": {"sharding": "zero2"},
    "zero3": {"sharding": "zero3"},
    "zero3-offload": {"sharding": "zero3", "offload": "parameters"},
    "zero2-offload": {"sharding": "zero2", "offload": "optimizer"},
    "fsdp": {"sharding": "fsdp"},
    "fsdp-accumulated": {"sharding": "fsdp", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "fsdp-hybrid": {"sharding": "fsdp-hybrid", "per_device_train_batch_size": 2, "num_processes": 4, "num_machines": 2},
    "zero3-accumulated": {"sharding": "zero3", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
}
if Path("/usr/include/libaio.h").exists():  # without it the plan is refused
    SHARDINGS["zero3-disk"] = {"sharding": "zero3", "offload": "parameters", "offload_to": "disk"}
METHODS = {
    "full": (Full(), 1e-3),
    "lora": (Lora(r=4, loraplus_lr_ratio=4.0), 1e-2),
    "prefix": (tunekit.methods.PrefixTuning(num_virtual_tokens=4), 3e-2),
    "adapter": (tunekit.methods.BottleneckAdapter(), 1e-2),
    "bitfit": (tunekit.methods.BitFit(), 1e-2),
}
"""With rates at which twenty steps change something. LoRA+ has groups with rates of their own."""

EVERYWHERE, KINDS = ("full", "lora"), ("ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp")
CELLS = [(m, s) for m in METHODS for s in SHARDINGS if m in EVERYWHERE or s in KINDS]
RANKS = {"fsdp-hybrid": 4}
"""Divided over two, held by two."""


def rows(folder: Path) -> Path:
    words = ["good", "bad", "fine", "poor", "great", "awful"]
    made = [{"text": f"{words[i % 6]} {words[(i * 5 + 1) % 6]} number {i % 11}", "label": i % 2} for i in range(80)]
    for name, part in (("train", made[:64]), ("validation", made[64:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    return folder


def job(folder: Path, model: str, method: str, still: bool = False, **changes: Any) -> dict[str, str]:
    name = f"{method}-{'-'.join(map(str, changes.values())) or ('still' if still else 'one')}"
    made, rate = METHODS[method]
    values = {
        "learning_rate": 1e-12 if still else rate,
        "per_device_train_batch_size": 4 if changes else 8,
        "num_processes": 2 if changes else 1,
        **changes,
    }
    plan = tunekit.Plan(
        model=model, task="sequence-classification", method=made, data=tunekit.DataSpec(path=str(folder)),
        max_steps=20, per_device_eval_batch_size=8, weight_decay=0.01, output_dir=str(folder / f"run-{name}"), **values,
    )  # fmt: skip
    return {"plan": str(plan.save(folder / f"{name}.yaml")), "result": str(folder / f"{name}.json")}


def run(folder: Path, jobs: list[dict[str, str]], ranks: int) -> None:
    path = folder / f"jobs-{ranks}.json"
    path.write_text(json.dumps(jobs))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, str(Path(__file__).with_name("sharding_rank.py")), str(path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Losses and logits of every cell, and of each method in one process, learning and (almost) still."""
    folder = rows(tmp_path_factory.mktemp("sharded"))
    (folder / "disk").mkdir()
    one = {(m, k): job(folder, tiny_encoder, m, still=k == "still") for m in METHODS for k in ("one", "still")}
    two = {(m, s): job(folder, tiny_encoder, m, **SHARDINGS[s]) for m, s in CELLS}
    run(folder, list(one.values()), 1)
    for ranks in (2, 4):
        run(folder, [j for (_, s), j in two.items() if RANKS.get(s, 2) == ranks], ranks)
    return {cell: {**json.loads(Path(j["result"]).read_text()), **j} for cell, j in {**one, **two}.items()}


@pytest.mark.parametrize(("method", "sharding"), CELLS, ids=lambda x: x)
def test_two_ranks_give_the_loss_curve_of_one_process(method: str, sharding: str, results: dict[Any, Any]) -> None:
    one, two = results[method, "one"], results[method, sharding]
    assert two["type"].endswith({"d": "MULTI_CPU", "z": "DEEPSPEED", "f": "FSDP"}[sharding[0]])
    assert len(one["losses"]) == 20
    still = results[method, "still"]["losses"]
    assert max(abs(a - b) / b for a, b in zip(one["losses"], still, strict=True)) > 1e-2, (
        "nothing was learnt to compare"
    )
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)


@pytest.mark.parametrize(("method", "sharding"), CELLS, ids=lambda x: x)
def test_what_two_ranks_saved_says_the_same_in_one_process(method: str, sharding: str, results: dict[Any, Any]) -> None:
    told = results[method, sharding]
    plan = tunekit.Plan.load(told["plan"])
    if method == "full":
        model = AutoModelForSequenceClassification.from_pretrained(plan.output_dir)
    else:
        base = AutoModelForSequenceClassification.from_pretrained(plan.model, num_labels=2)
        model = tunekit.load(base, plan.output_dir)
    trainer = tunekit.trainer(
        plan.replace(num_processes=1, num_machines=1, sharding=None, offload=None),
        model=model,
        overwrite=True,
        batch_eval_metrics=False,
    )
    trainer.compute_metrics = trainer.preprocess_logits_for_metrics = None
    logits = torch.tensor(trainer.predict(trainer.eval_dataset).predictions)
    assert torch.allclose(logits, torch.tensor(told["logits"]), atol=1e-5)
