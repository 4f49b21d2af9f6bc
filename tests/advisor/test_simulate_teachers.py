"""A teacher is in the estimate as it is read: in its dtype, packed, or on another device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import zoo
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate import estimate_memory
from tunekit.estimate import MemoryEstimate
from tunekit.methods.full import Full
from tunekit.objectives.distillation import Distillation
from tunekit.plan import Plan
from tunekit.workload import Hardware

CARD = Hardware(device="cuda", name="A10G", memory_bytes=22 * 2**30)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wider model's configuration."""
    config = zoo.config("llama")
    size = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    folder = tmp_path_factory.mktemp("teacher")
    type(config)(**{**config.to_dict(), **size, **heads}).save_pretrained(folder)
    return folder


def found(teacher: Path, dtype: str = "bfloat16", **settings: Any) -> MemoryEstimate:
    plan = Plan(
        model="x", task="causal-lm", method=Full(), objective=Distillation(teacher=str(teacher), **settings), max_length=32,
        per_device_train_batch_size=2, max_steps=5, dtype=dtype,
    )  # fmt: skip
    estimate = estimate_memory(plan, CARD, None, model=model_facts(zoo.config("llama")))
    assert estimate.fidelity == "traced", estimate.reasons
    return estimate


LINEAR = 6 * (4 * 512 * 512 + 3 * 512 * 2048)
"""Values of the teacher's linear layers."""


@pytest.mark.parametrize(("scheme", "bits"), [("nf4", 4.127), ("fp4", 4.127), ("int8", 8.0)])
def test_a_packed_teacher_takes_as_much_less(teacher: Path, scheme: Any, bits: float) -> None:
    saved = found(teacher).parts["weights"] - found(teacher, teacher_quantization=scheme).parts["weights"]
    assert saved == pytest.approx(LINEAR * (16 - bits) / 8, rel=0.01)


def test_a_teacher_is_read_in_the_dtype_that_is_named_or_in_the_students(teacher: Path) -> None:
    single = found(teacher, "float32").parts["weights"]
    half = found(teacher, "float32", teacher_dtype="bfloat16").parts["weights"]
    assert single - half > 2 * LINEAR
    assert found(teacher).parts["weights"] < half


def test_a_teacher_on_another_device_takes_none_of_this_one(teacher: Path) -> None:
    here, there = (found(teacher, teacher_device=d).parts["weights"] for d in (None, "cuda:1"))
    assert here - there > 2 * LINEAR
