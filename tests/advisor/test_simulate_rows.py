"""A step recorded once stands for any number of rows: sizes, order and work as in a step recorded with that many."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from simulated import SHAPE, step

import zoo
from tunekit.advisor.simulate.answers import ROWS, Cost
from tunekit.advisor.simulate.collated import Shape
from tunekit.advisor.simulate.depth import at_rows
from tunekit.advisor.simulate.record import Recorded, Subject, record_at
from tunekit.contracts import Method
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.task import TASKS, Task

CELLS = [(a, t.name) for a in zoo.ARCHITECTURES for t in TASKS if zoo.fits(a, t)]


def assert_one_stands_for_all(
    architecture: str, task: str, method: Method, shape: Shape = SHAPE, **changes: object
) -> None:
    subject = Subject(
        config_json=json.dumps(zoo.config(architecture).to_dict(), default=str), task=Task.named(task), num_labels=3,
        problem_type=None, dtype="float32", attn_implementation=None, quantization=None,
    )  # fmt: skip

    def taken(rows: int) -> Recorded:
        return record_at(subject, method, None, replace(shape, batch=rows), step(**changes), whole=True)

    line = taken(ROWS)
    for rows in (2, 5):
        predicted, real = at_rows(line.timeline, rows), taken(rows).timeline
        assert np.array_equal(predicted.events, real.events)
        assert np.array_equal(predicted.sizes, real.sizes)
        assert np.array_equal(predicted.parts, real.parts)
        assert work(predicted.ops) == work(real.ops)


def work(ops: tuple[tuple[str, Cost, int], ...]) -> Counter[object]:
    """What is done how often, whatever the cost's share that does not grow."""
    done: Counter[object] = Counter()
    for moment, cost, count in ops:
        done[moment, cost.name, cost.flops, cost.num_bytes] += count
    return done


@pytest.mark.parametrize(("architecture", "task"), CELLS)
def test_one_record_stands_for_any_number_of_rows(architecture: str, task: str) -> None:
    assert_one_stands_for_all(architecture, task, Full())


@pytest.mark.parametrize(
    "changes", [{"checkpoints": True}, {"device": "cuda", "mixed_precision": "bf16"}, {"accumulates": True}]
)
@pytest.mark.parametrize("architecture", ["bert", "llama", "mixtral", "t5"])
def test_also_with_checkpointing_autocast_and_accumulation(architecture: str, changes: dict[str, object]) -> None:
    task = {"bert": "sequence-classification", "t5": "seq2seq"}.get(architecture, "causal-lm")
    assert_one_stands_for_all(architecture, task, Lora(), **changes)


@pytest.mark.parametrize("length", [13, 30])
def test_also_where_the_attention_bias_is_cut_out_of_an_aligned_one(length: int) -> None:
    shape = replace(SHAPE, length=length, target_length=length - 2)
    assert_one_stands_for_all("t5", "seq2seq", Full(), shape, device="cuda", mixed_precision="bf16")
