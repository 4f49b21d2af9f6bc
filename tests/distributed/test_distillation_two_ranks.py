"""Two CPU ranks distil as one process does: the teacher whole on each, the projection learnt together, the head in pieces or whole."""

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
import yaml
from distilled import ASKED, ROWS, writer
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

import tunekit
from tunekit.contracts import OWN_MODULE
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.objectives.distillation import Distillation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
SHARDINGS = ("ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp")
CELLS = [
    *(("classes", s) for s in SHARDINGS),
    ("words", "ddp"),
    ("cached", "ddp"),
    ("words", "zero3"),
    ("lora", "zero3"),
]
CELLS = [c for c in CELLS if HAS_DEEPSPEED or c[1] in ("ddp", "fsdp")]


def teacher_of_classes(folder: Path, tiny_encoder: str) -> str:
    torch.manual_seed(2)
    names = {0: "no", 1: "yes"}
    config = BertConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, vocab_size=160, max_position_embeddings=64,
        id2label=names, label2id={"no": 0, "yes": 1}, initializer_range=0.2,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    return str(folder)


def job(folder: Path, kind: str, sharding: str | None, models: dict[str, str]) -> dict[str, str]:
    words = kind in ("words", "cached", "lora")
    objective: dict[str, Any] = {"teacher": models["words" if words else "classes"]}
    objective |= {"hidden_weight": 1.0} if kind == "classes" else {"positions_at_once": 16}
    objective |= {"cache": str(folder / "answers"), "top_k": 32} if kind == "cached" else {}
    name = f"{kind}-{sharding or 'one'}"
    kept, _, offloaded = (sharding or "").partition("-")
    plan = tunekit.Plan(
        model=models["decoder" if words else "encoder"], task="causal-lm" if words else "sequence-classification",
        method=Lora(r=4) if kind == "lora" else Full(), data=tunekit.DataSpec(path=str(folder / ("asked.jsonl" if words else "rows.jsonl"))),
        output_dir=str(folder / f"run-{name}"), max_steps=20, learning_rate=3e-3, warmup=0.0, objective=Distillation(**objective),
        per_device_train_batch_size=4 if sharding else 8, num_processes=2 if sharding else 1, sharding=kept or None,
        offload="parameters" if offloaded else None,
    )  # fmt: skip
    return {"plan": str(plan.save(folder / f"{name}.yaml")), "result": str(folder / f"{name}.json")}


def run(folder: Path, command: list[str], **more: str) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=800, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("distilled")
    for name, rows in (("rows", ROWS), ("asked", ASKED)):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return made


@pytest.fixture(scope="module")
def models(folder: Path, tiny_encoder: str, tiny_decoder: str) -> dict[str, str]:
    return {
        "encoder": tiny_encoder, "decoder": tiny_decoder, "classes": teacher_of_classes(folder / "classes", tiny_encoder),
        "words": writer("causal-lm", folder / "words", tiny_decoder),
    }  # fmt: skip


@pytest.fixture(scope="module")
def results(folder: Path, models: dict[str, str]) -> dict[tuple[str, str | None], dict[str, Any]]:
    one = {(kind, None): job(folder, kind, None, models) for kind in dict.fromkeys(k for k, _ in CELLS)}
    two = {(kind, sharding): job(folder, kind, sharding, models) for kind, sharding in CELLS}
    tunekit.teach(tunekit.Plan.load(one["cached", None]["plan"]), say=lambda text: None)
    script = str(Path(__file__).with_name("distillation_rank.py"))
    for jobs, launch in ((one, []), (two, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"])):
        path = folder / f"jobs-{len(launch)}.json"
        path.write_text(json.dumps(list(jobs.values())))
        run(folder, [*launch, script, str(path)])
    return {cell: {**json.loads(Path(j["result"]).read_text()), **j} for cell, j in {**one, **two}.items()}


@pytest.mark.parametrize(("kind", "sharding"), CELLS, ids=lambda x: x)
def test_two_ranks_distil_as_one_process_does(kind: str, sharding: str, results: dict[Any, Any]) -> None:
    one, two = results[kind, None], results[kind, sharding]
    assert two["type"].endswith({"d": "MULTI_CPU", "z": "DEEPSPEED", "f": "FSDP"}[sharding[0]])
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert abs(one["losses"][-1] - one["losses"][0]) > 1e-2 * one["losses"][0], "nothing was learnt to compare"
    assert two["teacher_whole"]
    assert not two["teacher_learns"]
    assert two["projections"] == (1 if kind == "classes" else 0)
    plan = tunekit.Plan.load(two["plan"])
    for file in Path(plan.output_dir).glob("*.safetensors"):
        mine = load_file(file)
        other = load_file(Path(tunekit.Plan.load(one["plan"]).output_dir) / file.name)
        assert not [k for k in mine if OWN_MODULE in k]
        assert mine.keys() == other.keys()
        assert all(torch.allclose(v, other[k], atol=2e-3) for k, v in mine.items())


def test_accelerate_launches_a_distillation_from_its_plan(folder: Path, models: dict[str, str]) -> None:
    plan = Path(job(folder, "classes", "ddp", models)["plan"])
    made = tunekit.Plan.load(plan).replace(output_dir=str(folder / "launched"))
    made.save(plan, overwrite=True)
    config = {
        "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_machines": 1, "num_processes": 2, "machine_rank": 0,
        "mixed_precision": "no", "use_cpu": False,
    }  # fmt: skip
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(config))
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.yaml")]
    run(folder, [*launch, "-m", "tunekit", "train", str(plan)], ACCELERATE_USE_CPU="true")
    record = json.loads((folder / "launched" / "record.json").read_text())
    assert record["steps"]["done"] == 20
