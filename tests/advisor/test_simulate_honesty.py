"""An estimate says what it is made of, how sure it is, and what would help."""

from __future__ import annotations

from typing import Any

import pytest

import zoo
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate import estimate_memory, estimate_time
from tunekit.advisor.simulate.question import Question
from tunekit.advisor.simulate.savings import savings
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.plan import Plan
from tunekit.workload import DataFacts, Hardware, ModelFacts

CARD = Hardware(device="cuda", name="A10G", memory_bytes=22 * 2**30)


def wide(architecture: str = "llama") -> ModelFacts:
    """A model that is not all overhead."""
    config = zoo.config(architecture)
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "vocab_size": 2000}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32}
    return model_facts(type(config)(**{**config.to_dict(), **size, **heads, "max_position_embeddings": 2048}))


def plan(**changes: Any) -> Plan:
    plain: dict[str, Any] = {
        "model": "x", "task": "causal-lm", "method": Full(), "max_length": 512, "per_device_train_batch_size": 8,
        "max_steps": 10,
    }  # fmt: skip
    return Plan(**{**plain, **changes})


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_parts_sum_to_the_peak_and_the_figures_are_ordered(device: str) -> None:
    machine = CARD if device == "cuda" else Hardware(device="cpu", name="cpu", memory_bytes=2**34, host_cores=2)
    found = estimate_memory(plan(), machine, None, model=wide())
    assert sum(found.parts.values()) == found.allocated_bytes
    assert found.allocated_bytes <= found.reserved_bytes <= found.device_bytes
    assert found.interval[0] < found.device_bytes < found.interval[1]
    assert found.moment in ("forward", "loss", "backward", "clip", "optimizer")
    assert found.reasons


def test_each_saving_is_real_and_the_best_comes_first() -> None:
    asked, model = plan(), wide()
    found = savings(asked, CARD, None, model)
    assert len(found) == 3
    assert [s.saved_bytes for s in found] == sorted((s.saved_bytes for s in found), reverse=True)
    before = estimate_memory(asked, CARD, None, model=model).allocated_bytes
    for saving in found:
        after = estimate_memory(asked.replace(**saving.changes), CARD, None, model=model).allocated_bytes
        assert before - after == saving.saved_bytes > 0


def test_a_saving_asks_for_nothing_that_the_plan_has_or_cannot_have() -> None:
    asked = plan(activation_checkpointing=True, per_device_train_batch_size=1, optim="adamw_bnb_8bit", dtype="bfloat16")
    assert savings(asked, CARD, None, wide()) == ()
    adapted = savings(asked.replace(method=Lora()), CARD, None, wide())
    assert [dict(s.changes) for s in adapted] == [{"quantization": "nf4"}]


def test_rows_that_are_seldom_long_may_be_cut() -> None:
    data = DataFacts(num_examples=100, lengths=(50,) * 98 + (500, 512))
    found = savings(plan(), CARD, data, wide())
    assert {"max_length": 50} in [dict(s.changes) for s in found]


def test_a_model_that_cannot_be_traced_is_estimated_coarsely_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks_at_values(*args: Any) -> Any:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    traced = estimate_memory(plan(), CARD, None, model=wide())
    monkeypatch.setattr(Question, "recorded", looks_at_values)
    found = estimate_memory(plan(), CARD, None, model=wide())
    assert found.fidelity == "coarse"
    assert "Tensor.item()" in found.reasons[0]
    assert found.interval[0] <= traced.device_bytes <= found.interval[1]
    assert found.interval[1] >= 3 * found.interval[0], "bounds are wide"
    assert estimate_time(plan(), CARD, None, wide()).fidelity == "coarse"
    assert savings(plan(), CARD, None, wide()) == ()


def test_batches_of_varying_length_are_named_as_a_cause_of_doubt() -> None:
    data = DataFacts(num_examples=100, lengths=tuple(range(100, 500, 4)))
    even, uneven = (estimate_memory(plan(), CARD, d, model=wide()) for d in (None, data))
    assert not any("varying length" in reason for reason in even.reasons)
    assert any("varying length" in reason for reason in uneven.reasons)
    assert uneven.interval[1] / uneven.device_bytes > even.interval[1] / even.device_bytes
