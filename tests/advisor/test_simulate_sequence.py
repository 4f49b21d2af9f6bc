"""A run replayed batch by batch: what is reserved follows the order of lengths, and one length alone is one step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import zoo
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate import estimate_memory
from tunekit.advisor.simulate.allocator import CachingAllocator, replay
from tunekit.advisor.simulate.batches import batches
from tunekit.advisor.simulate.collated import Shape
from tunekit.advisor.simulate.depth import Timeline
from tunekit.advisor.simulate.held import held_in
from tunekit.advisor.simulate.peak import peak
from tunekit.advisor.simulate.question import Question
from tunekit.advisor.simulate.run_lengths import padded_lengths, telling
from tunekit.advisor.simulate.sequence import CycleError, Replay, cycle
from tunekit.advisor.simulate.whole_run import replayed
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.plan import DataSpec, Plan
from tunekit.workload import DataFacts, Hardware, ModelFacts

CARD = Hardware(device="cuda", name="A10G", memory_bytes=22 * 2**30)
LENGTHS = DataFacts(num_examples=400, lengths=tuple(sorted([40, 60, 80, 100, 120, 160, 200, 255] * 20 + [511] * 2)))


def wide(**changes: Any) -> ModelFacts:
    config = zoo.config("llama")
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 8000}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32, "max_position_embeddings": 2048}
    return model_facts(type(config)(**{**config.to_dict(), **size, **heads, **changes}))


def plan(**changes: Any) -> Plan:
    plain: dict[str, Any] = {
        "model": "x", "task": "causal-lm", "method": Lora(r=4), "max_length": 512, "per_device_train_batch_size": 4, "max_steps": 50,
        "dtype": "bfloat16",
    }  # fmt: skip
    return Plan(**{**plain, **changes})


def timeline(asked: Plan, shape: Shape) -> Timeline:
    return held_in(Question(plan=asked, hardware=CARD, data=None, model=wide()), shape).share.timeline


def longest(asked: Plan, data: DataFacts = LENGTHS) -> Shape:
    return batches(asked, wide(), data, "trainer").longest


@pytest.mark.parametrize(
    "changes", [{}, {"method": Full()}, {"attn_implementation": "eager"}, {"activation_checkpointing": True}]
)
def test_a_step_told_from_two_others_is_the_one_that_is_recorded(changes: dict[str, Any]) -> None:
    asked = plan(**changes)
    shape = longest(asked)
    at = {n: timeline(asked, _at(shape, n)) for n in (511, 255, 111)}
    told = cycle(at[511], at[111], (511, 111)).at(255)
    made = cycle(at[255], at[111], (255, 111)).at(255)
    assert (told >= made).all(), "what grows with the square lies below the line"
    if "attn_implementation" not in changes:
        assert told.sum() <= 1.01 * made.sum(), "the masks alone do"


def _at(shape: Shape, length: int) -> Shape:
    from dataclasses import replace

    return replace(shape, length=length)


def test_steps_with_other_events_are_not_mixed() -> None:
    one, other = (timeline(plan(method=m), longest(plan())) for m in (Lora(r=4), Full()))
    with pytest.raises(CycleError):
        cycle(one, other, (511, 511))


@pytest.mark.parametrize("method", [Lora(r=4), Full()])
def test_batches_of_one_length_reserve_what_one_step_does(method: Any) -> None:
    asked = plan(method=method)
    record = timeline(asked, longest(asked))
    run = Replay(record)
    again = cycle(record, timeline(asked, _at(longest(asked), 103)), (511, 103))
    for _ in range(5):
        run.step(again, 511)
    alone = CachingAllocator()
    replay(alone, record, steps=2)
    assert run.allocator.peak_reserved == pytest.approx(alone.peak_reserved, rel=0.005)
    assert run.allocator.peak_allocated == pytest.approx(alone.peak_allocated, rel=0.001)
    assert run.allocator.peak_allocated >= 0.999 * peak(record, 512).num_bytes
    assert run.reserved_at.startswith(("step 1,", "step 2,"))


@pytest.mark.parametrize("method", [Lora(r=4), Full()])
def test_rows_in_any_order_reserve_at_least_what_grouped_ones_do(method: Any) -> None:
    asked = plan(method=method)
    shape = longest(asked)
    grouped, random = (
        replayed(asked, LENGTHS, shape, lambda s: timeline(asked, s), (), None, None, order)
        for order in ("grouped", "random")
    )
    assert grouped is not None
    assert random is not None
    assert grouped.allocator.peak_reserved <= 1.02 * random.allocator.peak_reserved
    for run in (grouped, random):
        assert run.allocator.peak_allocated <= run.allocator.peak_reserved
        assert run.reserved_at.split(", ")[1] in ("forward", "loss", "backward", "clip", "optimizer", "end")


def test_the_estimate_is_that_of_the_run_and_names_the_moment() -> None:
    asked = plan(method=Full())
    run = estimate_memory(asked, CARD, LENGTHS, model=wide())
    step = estimate_memory(asked, CARD, LENGTHS, model=wide(), replays=False)
    assert run.reserved_moment.startswith("step ")
    assert step.reserved_moment == ""
    assert run.allocated_bytes == step.allocated_bytes
    assert step.reserved_bytes <= run.reserved_bytes <= run.interval[1]


def test_packed_rows_are_all_of_a_length() -> None:
    assert estimate_memory(plan(packing=True), CARD, LENGTHS, model=wide()).reserved_moment == ""


def test_an_evaluation_comes_after_the_steps() -> None:
    asked = plan(per_device_eval_batch_size=64, data=DataSpec(path="rows.jsonl", eval_share=0.1))
    found = estimate_memory(asked, CARD, LENGTHS, model=wide())
    assert found.moment == "evaluation"
    assert found.reserved_moment == "evaluation"


def test_a_full_device_gets_cached_blocks_back() -> None:
    asked = plan()
    free, tight = (
        replayed(asked, LENGTHS, longest(asked), lambda s: timeline(asked, s), (), capacity, None, "random")
        for capacity in (None, int(1.1 * peak(timeline(asked, longest(asked)), 512).num_bytes))
    )
    assert free is not None
    assert tight is not None
    assert tight.allocator.peak_reserved < free.allocator.peak_reserved


def test_the_longest_row_comes_first_where_rows_are_grouped() -> None:
    lengths = np.arange(1, 1001)
    grouped = padded_lengths(lengths, 4, "grouped", 4)
    assert grouped[0] == 1000
    assert len(grouped) == 250
    assert grouped.mean() < padded_lengths(lengths, 4, "random", 4).mean()


def test_what_a_replay_needs_holds_every_batch_that_is_longer_than_those_before() -> None:
    padded = np.array([10, 12, 11, 9, 9, 9, 30, 8, 9, 9, 31, 9])
    chosen = telling(padded)
    assert {(7, 30), (8, 8), (11, 31), (12, 9)} <= set(chosen)
    assert (4, 9) not in chosen
    assert len(telling(np.arange(1, 500))) <= 12
