"""With the frozen layers' answers kept, a step is traced without those layers, and the pass before it and the store are counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from simulated import SHAPE, peak_bytes, recorded, step

import zoo
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate import estimate_memory, estimate_time
from tunekit.advisor.simulate.peak import peak
from tunekit.advisor.simulate.record import Subject, record_at
from tunekit.contracts import Method
from tunekit.methods.lora import Lora
from tunekit.methods.partial import Partial
from tunekit.methods.peft import Peft
from tunekit.plan import Plan
from tunekit.task import Task
from tunekit.workload import DataFacts, Hardware, ModelFacts

CARD = Hardware(device="cuda", name="A10G", memory_bytes=22 * 2**30)
HOST = Hardware(device="cpu", name="cpu", memory_bytes=8 * 2**30, host_cores=2)
TOP = Partial(last_layers=1)
DATA = DataFacts(num_examples=90, num_eval_examples=10, lengths=tuple(range(10, 64)))


def deep(layers: int = 16, width: int = 64) -> ModelFacts:
    config = zoo.config("llama")
    size = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "layer_types": None}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": width // 4}
    return model_facts(type(config)(**{**config.to_dict(), **size, **heads}))


def plan(kept: str, method: Method = TOP, **changes: Any) -> Plan:
    plain: dict[str, Any] = {
        "model": "x", "task": "causal-lm", "method": method, "max_length": 64, "per_device_train_batch_size": 4,
        "num_train_epochs": 4.0, "frozen_activations": kept,
    }  # fmt: skip
    return Plan(**{**plain, **changes})


@pytest.mark.parametrize(
    ("architecture", "task", "changes"),
    [
        ("bert", "sequence-classification", {}),
        ("llama", "causal-lm", {"checkpoints": True}),
        ("gpt2", "causal-lm", {"mixed_precision": "bf16"}),
        ("bert", "multiple-choice", {}),
        ("modernbert", "sequence-classification", {"loop": "trainer-evaluation"}),
        ("llama", "causal-lm", {"loop": "trainer-filling", "supplied": False}),
        ("bert", "multiple-choice", {"loop": "trainer-filling", "supplied": False, "mixed_precision": "bf16"}),
    ],
)
def test_the_peak_is_that_of_the_same_pass_with_weights(
    architecture: str, task: str, changes: dict[str, object]
) -> None:
    asked: dict[str, Any] = {"supplied": True, **changes}
    without, real = (
        peak_bytes(recorded(architecture, task, TOP, weightless=weightless, **asked)) for weightless in (True, False)
    )
    assert without == real > 10_000


@pytest.mark.parametrize("last", [1, 2, 4, 5])
def test_a_shallow_step_without_frozen_layers_stands_for_the_whole_one(last: int) -> None:
    subject = Subject(
        config_json=deep(13).config_json, task=Task.named("causal-lm"), num_labels=None, problem_type=None, dtype="float32",
        attn_implementation=None, quantization=None,
    )  # fmt: skip
    method, taken = Partial(last_layers=last), step(supplied=True)
    whole = record_at(subject, method, None, SHAPE, taken, whole=True)
    assert whole.kept is not None
    assert (whole.kept.layers, whole.kept.token_bytes) == (13 - last, 64 * 4)
    if last > 2:  # the shallow copy has no more than five, so that the last four are not the last four of thirteen
        with pytest.raises(Exception, match=r"number of blocks|last_layers"):
            record_at(subject, method, None, SHAPE, taken, whole=False)
        return
    shallow = record_at(subject, method, None, SHAPE, taken, whole=False)
    assert shallow.kept == whole.kept
    assert peak(shallow.timeline) == peak(whole.timeline)


def test_the_frozen_layers_cost_no_time_in_a_step_and_one_pass_before() -> None:
    plain, kept = (estimate_time(plan(k), HOST, DATA, deep(16, 256)) for k in ("recomputed", "cached"))
    assert plain.once_seconds == 0 < kept.once_seconds
    assert kept.total_seconds == pytest.approx(kept.step_seconds * kept.num_steps + kept.once_seconds)
    assert kept.step_flops < 0.5 * plain.step_flops
    # a pass over 100 rows through 15 of 16 layers is less than the forward half of an epoch of 90
    assert kept.once_seconds < plain.parts["forward"] * plain.num_steps / 4
    assert kept.total_seconds < 0.6 * plain.total_seconds
    assert any("before the first step" in reason for reason in kept.reasons)


def test_the_store_counts_on_the_host_and_is_named_on_a_card() -> None:
    tokens = round(100 * sum(DATA.lengths) / len(DATA.lengths))
    host = estimate_memory(plan("cached"), HOST, DATA, model=deep())
    assert host.parts["frozen activations"] == tokens * 64 * 4
    assert sum(host.parts.values()) == host.allocated_bytes
    card = estimate_memory(plan("cached"), CARD, DATA, model=deep())
    assert "frozen activations" not in card.parts
    said = next(reason for reason in card.reasons if "frozen layers" in reason)
    assert "15 frozen layers" in said
    assert "256 bytes a token" in said
    plain = estimate_memory(plan("recomputed"), CARD, DATA, model=deep())
    assert card.allocated_bytes <= plain.allocated_bytes


def test_a_store_without_room_in_memory_goes_into_a_file() -> None:
    small = Hardware(device="cpu", name="cpu", memory_bytes=9 * 2**20, host_cores=2)
    many = DataFacts(num_examples=10**5, lengths=DATA.lengths)
    found = estimate_memory(plan("cached"), small, many, model=deep())
    assert "frozen activations" not in found.parts
    assert any("in a file" in reason for reason in found.reasons)


def test_the_pass_before_can_be_the_peak_and_says_so() -> None:
    rows = DataFacts(num_examples=100, lengths=DATA.lengths)
    many, few = (
        estimate_memory(plan("cached", per_device_eval_batch_size=n), CARD, rows, model=deep()) for n in (512, 4)
    )
    said = "the pass through the frozen layers before the first step, 512 rows at a time"
    assert any(said in reason for reason in many.reasons)
    assert not any("before the first step" in reason for reason in few.reasons)
    assert many.allocated_bytes > few.allocated_bytes
    assert sum(many.parts.values()) == many.allocated_bytes


def test_where_nothing_is_frozen_nothing_is_kept_and_the_estimate_says_why() -> None:
    found = estimate_memory(plan("cached", Lora(r=4)), CARD, DATA, model=deep())
    assert found.fidelity == "traced"
    assert any("nothing of the frozen layers is kept" in reason for reason in found.reasons)
    assert estimate_time(plan("cached", Lora(r=4)), CARD, DATA, deep()).once_seconds == 0


@pytest.mark.parametrize("last", [3, 4, 5, 8])
def test_the_last_layers_are_counted_in_the_whole_model(last: int) -> None:
    facts = deep(16)
    found = estimate_memory(plan("recomputed", Partial(last_layers=last)), CARD, None, model=facts)
    size = json.loads(facts.config_json)["hidden_size"]
    block, norm = 4 * size * size + 3 * size * 2 * size + 2 * size, size
    assert found.trainable_parameters == last * block + norm


def test_layers_that_are_named_by_number_are_those_of_the_whole_model() -> None:
    settings = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "layers_to_transform": [0, 5, 9]}
    found = estimate_memory(plan("recomputed", Peft(config=settings)), CARD, None, model=deep(16))
    assert found.trainable_parameters == 3 * 2 * 4 * 64
    regex = {"peft_type": "LORA", "r": 4, "target_modules": r".*layers\.(1[0-5])\.self_attn\.q_proj"}
    found = estimate_memory(plan("cached", Peft(config=regex)), CARD, DATA, model=deep(16))
    assert found.trainable_parameters == 6 * 2 * 4 * 64
    assert any("10 frozen layers" in reason for reason in found.reasons)
