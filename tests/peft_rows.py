"""PEFT's published runs as plans: what the reference test and the benchmark of memory accuracy read."""

from __future__ import annotations

import csv
import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from tunekit.contracts import Family, Method, Recipe
from tunekit.finding import Finding
from tunekit.plan import Plan
from tunekit.task import Task
from tunekit.workload import Hardware, ModelFacts, Workload

CSV = Path(__file__).parent / "reference" / "peft_llama-3.2-3B.csv"
GIB = 2**30
LLAMA = {
    "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True, "max_position_embeddings": 131072,
}  # fmt: skip
"""meta-llama/Llama-3.2-3B's config.json, as far as it decides shapes."""
L40S = Hardware(device="cuda", name="L40S", memory_bytes=int(44.4 * GIB))
FITTED_ON = "lora/llama-3.2-3B-rank32"


@dataclass(frozen=True, kw_only=True, slots=True)
class AnyPeft(Method):
    """Any PEFT configuration, as its dict; None trains everything."""

    slug: ClassVar[str] = "any-peft"
    title: ClassVar[str] = "PEFT"
    reference: ClassVar[str] = "huggingface/peft"
    family: ClassVar[Family] = "other"
    config: Mapping[str, Any]

    def supports(self, *args: Any, **kwargs: Any) -> Finding | None:
        return None

    def recipe(self, workload: Workload) -> Recipe:
        return Recipe(learning_rate=1e-4, num_train_epochs=1)

    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        import peft

        values = {
            k: v for k, v in self.config.items() if k not in ("peft_type", "peft_version", "base_model_name_or_path")
        }
        kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(self.config["peft_type"])]
        known = {k: v for k, v in values.items() if k in kind.__dataclass_fields__}
        return peft.get_peft_model(model, kind(**known))

    def save(self, *args: Any) -> None:
        raise NotImplementedError

    def load(self, *args: Any) -> nn.Module:
        raise NotImplementedError


def rows() -> list[dict[str, str]]:
    """The published runs."""
    with CSV.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def llama() -> ModelFacts:
    """Facts of the model that all of them train."""
    from tunekit.advisor.observe.model import model_facts
    from tunekit.advisor.weightless import read_config

    return model_facts(read_config(LLAMA))


def plan(row: Mapping[str, str], max_length: int) -> Plan:
    """A published run as a plan."""
    method = AnyPeft(config=json.loads(row["peft_config_json"]))
    return Plan(
        model=row["model_id"], task="causal-lm", method=method, dtype="bfloat16", max_length=max_length,
        per_device_train_batch_size=int(row["batch_size"]), optim="adamw_torch", max_steps=5000,
    )  # fmt: skip


def fit_length(model: ModelFacts) -> int:
    """The one unknown: the longest padded length at which LoRA r=32 reserves what it was measured to."""
    from tunekit.advisor.simulate import estimate_memory

    row = next(r for r in rows() if r["experiment"] == FITTED_ON)

    def excess(length: int) -> float:
        return estimate_memory(plan(row, length), L40S, None, "peft-benchmark", model).reserved_bytes - reserved(row)

    above = bisect_left(range(650, 769), 0, key=excess) + 650
    return min((above - 1, above), key=lambda length: abs(excess(length)))


def reserved(row: Mapping[str, str]) -> float:
    """Bytes that were measured."""
    return float(row["mem_reserved_max_GiB"]) * GIB
