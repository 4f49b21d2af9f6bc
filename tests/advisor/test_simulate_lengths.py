"""The work of a step at the average length, told from one recorded at the longest, is that of a step recorded there."""

from __future__ import annotations

import pytest

import zoo
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate.batches import Batches, batches
from tunekit.advisor.simulate.duration import ops_of_a_step
from tunekit.advisor.simulate.question import Question
from tunekit.discovery import find
from tunekit.plan import Plan
from tunekit.workload import DataFacts, Hardware

CARD = Hardware(device="cuda", name="A10G", memory_bytes=22 * 2**30)
MODEL = model_facts(zoo.config("llama"))


def flops(plan: Plan, shapes: Batches) -> float:
    asked = Question(plan=plan, hardware=CARD, data=None, model=MODEL)
    return sum(cost.flops * count for _, cost, count in ops_of_a_step(asked, shapes))


@pytest.mark.parametrize("method", ["lora", "prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2"])
def test_work_at_the_average_length_is_that_of_a_step_recorded_there(method: str) -> None:
    plan = Plan(
        model="x", task="causal-lm", method=find("method", method)(), per_device_train_batch_size=4, max_steps=9
    )
    shapes = batches(plan, MODEL, DataFacts(num_examples=60, lengths=(8,) * 55 + (64,) * 5), "trainer")
    assert shapes.typical.length < shapes.longest.length / 1.5
    there = Batches(longest=shapes.typical, typical=shapes.typical, mean_tokens=shapes.mean_tokens)
    assert flops(plan, shapes) == pytest.approx(flops(plan, there), rel=0.02)
