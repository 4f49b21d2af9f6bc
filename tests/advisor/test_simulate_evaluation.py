"""What happens between training steps is part of the peak: evaluations, and answers that are generated in them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from simulated import SHAPE, peak_bytes, recorded, step

import zoo
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate import estimate_memory, generation
from tunekit.advisor.simulate.depth import Stack
from tunekit.advisor.simulate.extension import extend
from tunekit.advisor.simulate.generation import generated
from tunekit.advisor.simulate.peak import peak
from tunekit.advisor.simulate.record import Subject, record_at
from tunekit.advisor.simulate.savings import savings
from tunekit.contracts import Method
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.plan import DataSpec, Plan
from tunekit.task import Task
from tunekit.workload import DataFacts, Hardware, ModelFacts

CARD = Hardware(device="cuda", name="A10G", memory_bytes=22 * 2**30)
DATA = DataSpec(path="rows.jsonl", eval_share=0.1)


def wide(vocab_size: int = 30_000) -> ModelFacts:
    config = zoo.config("llama")
    size = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8, "vocab_size": vocab_size}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32}
    return model_facts(type(config)(**{**config.to_dict(), **size, **heads}))


def plan(**changes: Any) -> Plan:
    plain: dict[str, Any] = {
        "model": "x", "task": "causal-lm", "method": Lora(r=4), "max_length": 64, "per_device_train_batch_size": 2, "max_steps": 10,
        "dtype": "bfloat16", "data": DATA,
    }  # fmt: skip
    return Plan(**{**plain, **changes})


@pytest.mark.parametrize(
    ("architecture", "task", "method"),
    [("llama", "causal-lm", Lora(r=4)), ("bert", "sequence-classification", Full()), ("t5", "seq2seq", Full())],
)
def test_an_evaluation_peaks_at_the_same_number_of_bytes_with_and_without_weights(
    architecture: str, task: str, method: Method
) -> None:
    without, real = (
        peak_bytes(recorded(architecture, task, method, weightless=w, loop="trainer-evaluation")) for w in (True, False)
    )
    assert without == real > 10_000


@pytest.mark.parametrize("loop", ["trainer-evaluation", "peft-evaluation"])
def test_a_shallow_evaluation_stands_for_the_whole_one(loop: str) -> None:
    config = zoo.config("llama")
    deep = type(config)(**{**config.to_dict(), "num_hidden_layers": 13, "layer_types": None})
    subject = Subject(
        config_json=json.dumps(deep.to_dict(), default=str), task=Task.named("causal-lm"), num_labels=None, problem_type=None,
        dtype="float32", attn_implementation=None, quantization=None,
    )  # fmt: skip
    shallow, whole = (
        record_at(subject, Lora(r=4), None, SHAPE, step(loop=loop), whole=w).timeline for w in (False, True)
    )
    assert peak(shallow) == peak(whole)
    assert len(shallow.events) == len(whole.events)


def test_an_evaluation_with_more_rows_can_be_the_peak_and_says_so() -> None:
    few, many = (estimate_memory(plan(per_device_eval_batch_size=n), CARD, None, model=wide()) for n in (2, 64))
    assert few.moment != "evaluation"
    assert many.moment == "evaluation"
    assert many.device_bytes > few.device_bytes
    assert sum(many.parts.values()) == many.allocated_bytes <= many.reserved_bytes
    assert many.parts["logits"] > 64 * 64 * 30_000 * 2
    assert any("the evaluation, 64 rows at a time" in reason for reason in many.reasons)


def test_without_rows_to_evaluate_on_nothing_is_evaluated() -> None:
    none = plan(per_device_eval_batch_size=64, data=None)
    assert estimate_memory(none, CARD, None, model=wide()).moment != "evaluation"
    held_out = DataFacts(num_examples=100, num_eval_examples=10)
    assert estimate_memory(none, CARD, held_out, model=wide()).moment == "evaluation"


def test_fewer_rows_in_the_evaluation_are_named_as_a_saving() -> None:
    found = savings(plan(per_device_eval_batch_size=64), CARD, None, wide())
    assert dict(found[0].changes) == {"per_device_eval_batch_size": 2}


def test_keys_and_values_grow_by_a_token_at_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_LARGE", 0)
    trace = recorded("llama", "causal-lm", Lora(r=4), weightless=True, loop="peft-evaluation")
    whole = Stack(name="model.layers", kept=(0, 1), templates=(0, 1))
    first = extend(trace, [whole])
    second, longer = generated(first, 2), generated(first, 12)
    alive = np.cumsum(_change(longer))
    assert alive.min() >= 0
    per_token = 2 * 2 * 50 * 16 * 4  # keys and values of two blocks, 50 rows, 16 numbers in 32 bits
    end, ended = (next(at for at, moment in t.moments if moment == "end") for t in (second, longer))
    grown = alive[ended - 1] - np.cumsum(_change(second))[end - 1]
    assert grown == 10 * per_token
    assert alive[-1] == np.cumsum(_change(first))[-1], "all of it is freed"


def test_a_step_with_checkpointing_leaves_nothing_to_one_without() -> None:
    config = zoo.config("llama")
    subject = Subject(
        config_json=json.dumps(config.to_dict(), default=str), task=Task.named("causal-lm"), num_labels=None, problem_type=None,
        dtype="float32", attn_implementation=None, quantization=None,
    )  # fmt: skip
    before, _, after = (
        record_at(subject, Lora(r=3), None, SHAPE, step(checkpoints=c), whole=False).timeline
        for c in (False, True, False)
    )
    assert len(before.events) == len(after.events)
    assert peak(before) == peak(after)


def _change(timeline: Any) -> Any:
    born = timeline.events >= 0
    names = np.where(born, timeline.events, ~timeline.events)
    return np.where(born, timeline.sizes[names], -timeline.sizes[names])


def test_answers_that_cannot_be_traced_leave_the_training_steps_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunekit.advisor.simulate import peft_runs

    def fails(*args: Any) -> Any:
        raise RuntimeError("looks at values")

    monkeypatch.setattr(peft_runs, "answering", fails)
    alone = estimate_memory(plan(), CARD, None, "peft-benchmark", wide())
    assert any(
        "could not be traced (RuntimeError: looks at values): the training steps alone" in r for r in alone.reasons
    )
    assert alone.moment in ("forward", "loss", "backward", "optimizer")
    low, high = alone.interval
    assert high - low > 0.2 * alone.device_bytes, "what is missing widens the bounds"
