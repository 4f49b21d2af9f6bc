"""Every cell there is, as a plan, and why one is refused: asked of the product itself, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tunekit
import zoo
from tunekit.errors import InvalidError
from tunekit.finding import Finding
from tunekit.methods.adapter_fusion import AdapterFusion
from tunekit.sharding import sharding_faults
from tunekit.task import Task

METHODS = {**zoo.methods(), "adapter-fusion": AdapterFusion(adapters=("first", "second"))}
METHODS = {name: m for name, m in METHODS.items() if name == m.slug}
QUANTIZATIONS = (None, "nf4", "fp4", "int8")
SHARINGS: dict[str, dict[str, Any]] = {
    "one": {},
    "ddp": {"sharding": "ddp"},
    "zero1": {"sharding": "zero1"},
    "zero2": {"sharding": "zero2"},
    "zero3": {"sharding": "zero3"},
    "zero2-offload": {"sharding": "zero2", "offload": "optimizer"},
    "zero3-offload": {"sharding": "zero3", "offload": "parameters"},
    "fsdp": {"sharding": "fsdp"},
}
OBJECTIVES = ("supervised", "distillation")
TASK = Task.named("causal-lm")
_RATES = {"prompts": 3e-2, "rescaling": 3e-2, "full": 1e-3, "partial": 1e-3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One combination."""

    method: str
    quantization: str | None = None
    sharing: str = "one"
    checkpoints: bool = False
    objective: str = "supervised"

    @property
    def key(self) -> str:
        on = "on" if self.checkpoints else "off"
        return f"{self.method} {self.quantization or 'none'} {self.sharing} {on} {self.objective}"

    @property
    def alone(self) -> Cell:
        """The same in one process without checkpointing, whose losses it must have."""
        return replace(self, sharing="one", checkpoints=False)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def every_cell() -> Iterator[Cell]:
    for method in METHODS:
        for quantization in QUANTIZATIONS:
            if quantization == "fp4" and method != "lora":
                continue  # nf4 with sixteen other values
            for objective in OBJECTIVES:
                for sharing in SHARINGS:
                    for checkpoints in (False, True):
                        yield Cell(
                            method=method,
                            quantization=quantization,
                            sharing=sharing,
                            checkpoints=checkpoints,
                            objective=objective,
                        )


def covering_cells() -> list[Cell]:
    """Few cells that hold every form of sharing, every quantisation, both objectives, and methods of every kind."""
    return [
        Cell(method="full", sharing="fsdp"),
        Cell(method="lora", sharing="zero3", quantization="nf4"),
        Cell(method="lora", sharing="fsdp", quantization="nf4", checkpoints=True),
        Cell(method="lora", sharing="ddp", quantization="int8"),
        Cell(method="lora", sharing="zero2", quantization="fp4"),
        Cell(method="bottleneck-adapter", sharing="fsdp"),
        Cell(method="prefix-tuning", sharing="zero3-offload"),
        Cell(method="p-tuning", sharing="zero3"),
        Cell(method="p-tuning", sharing="fsdp"),
        Cell(method="full", sharing="zero3", objective="distillation"),
        Cell(method="lora", sharing="fsdp", objective="distillation"),
        Cell(method="prompt-tuning", sharing="zero2-offload", checkpoints=True),
    ]


def plan(cell: Cell, folder: Path) -> tunekit.Plan:
    """The cell as a plan over what `materials` wrote."""
    method = METHODS[cell.method]
    if cell.method == "adapter-fusion":
        method = AdapterFusion(adapters=tuple(str(folder / name) for name in ("first", "second")))
    shared = SHARINGS[cell.sharing]
    ranks = 2 if shared else 1
    teacher = tunekit.objectives.Distillation(teacher=str(folder / "teacher"), positions_at_once=16)
    return tunekit.Plan(
        model=str(folder / "model"), task=TASK.name, method=method, data=tunekit.DataSpec(path=str(folder / "rows")),
        max_steps=6, per_device_train_batch_size=8 // ranks, num_processes=ranks, warmup=0, quantization=cell.quantization,
        learning_rate=_RATES.get(method.slug, _RATES.get(method.family, 1e-2)), activation_checkpointing=cell.checkpoints,
        objective=teacher if cell.objective == "distillation" else None,
        output_dir=str(folder / "runs" / cell.key.replace(" ", "-")), **shared,
    )  # fmt: skip


def refusal(cell: Cell, folder: Path) -> Finding | None:
    """Why the cell is refused, by the checks that a run passes before it loads anything; None where it is not."""
    from tunekit.advisor.observe.model import model_facts

    try:
        made = plan(cell, folder)
    except InvalidError as e:
        return e.findings[0]
    facts = model_facts(made.model)
    refused = made.method.supports(facts, TASK, made.objective, made.quantization, made.sharding)
    return next(iter(sharding_faults(made)), refused)


def materials(folder: Path) -> None:
    """A Llama with biases that can be quantised in blocks of 64, a teacher, two adapters, and rows of two lengths."""
    import torch
    from conftest import make_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128, vocab_size=160,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=5, bos_token_id=5, initializer_range=0.1, attention_bias=True,
    )  # fmt: skip
    for seed, name in enumerate(("model", "teacher")):
        set_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder / name)
        make_tokenizer(folder / name, chat=True)
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        base = LlamaForCausalLM.from_pretrained(folder / "model")
        tunekit.prepare(base, tunekit.methods.BottleneckAdapter(), TASK).save_pretrained(folder / name)
    words = ["good", "bad", "fine", "poor", "great", "awful"]
    rows = [{"text": f"{words[i % 6]} {words[(i * 5 + 1) % 6]} number {i % 11} the sun saw red" + " moon blue" * (i % 3)} for i in range(48)]  # fmt: skip
    (folder / "rows").mkdir()
    (folder / "rows" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
