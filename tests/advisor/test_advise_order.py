"""The written order: points, ties within the noise, predicted figures within a tie, and answers that do not depend on luck."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekit.advice import Entry
from tunekit.advisor.order import NOISE_POINTS, order, score
from tunekit.advisor.rule import example
from tunekit.finding import Finding, error, note


def entry(
    rank: int = 8, points: float = 0.0, hours: float = 1.0, gib: float = 4.0, trains: int = 10**6, **facts: Any
) -> Entry:
    q = example("lora", settings={"r": rank}, hours=hours, needed_gib=gib, trainable_parameters=trains)
    severity = "favours" if points > 0 else "disfavours"
    moved = (Finding(code="some-rule", severity=severity, seen="seen", points=points),)
    return Entry(plan=q.plan, memory=q.memory, duration=q.duration, findings=moved, **facts)


def ranks(entries: list[Entry], goal: str = "balanced") -> list[int]:
    asked = dataclasses.replace(example("lora").workload, goal=goal)
    return [e.plan.method.r for e in order(asked, entries)[0]]


def test_more_points_come_first() -> None:
    assert ranks([entry(1, -3), entry(2, 3), entry(3, 0)]) == [2, 3, 1]


def test_a_point_apart_is_a_tie_and_the_quicker_one_wins_it() -> None:
    within = [entry(1, NOISE_POINTS, hours=2), entry(2, 0.0, hours=1)]
    assert ranks(within) == [2, 1]
    apart = [entry(1, NOISE_POINTS + 0.1, hours=2), entry(2, 0.0, hours=1)]
    assert ranks(apart) == [1, 2]


def test_ties_are_numbered_and_measured_from_the_leader_of_the_group() -> None:
    entries = [entry(1, 0.0), entry(2, -0.8), entry(3, -1.6), entry(4, -2.4)]
    ranked, _, _ = order(example("lora").workload, entries)
    assert [(e.plan.method.r, e.tie) for e in ranked] == [(1, 0), (2, 0), (3, 1), (4, 1)]


@pytest.mark.parametrize(("goal", "first"), [("speed", 1), ("memory", 2), ("storage", 3)])
def test_a_tie_is_broken_by_what_the_goal_asks_for(goal: str, first: int) -> None:
    entries = [
        entry(1, hours=1, gib=9, trains=900),
        entry(2, hours=9, gib=1, trains=800),
        entry(3, hours=8, gib=8, trains=100),
    ]
    assert ranks(entries, goal)[0] == first


def test_quality_counts_by_half_where_the_goal_is_another() -> None:
    findings = [
        Finding(code="some-rule", severity="disfavours", seen="s", points=-4),
        Finding(code="goal-speed", severity="favours", seen="s", points=3),
    ]
    asked = example("lora").workload
    assert score(asked, findings) == -1
    assert score(dataclasses.replace(asked, goal="speed"), findings) == 1


def test_what_an_error_rules_out_is_rejected_and_the_nearest_to_fitting_comes_first() -> None:
    bad = (error("fits-memory", "too big"),)
    far, near = (dataclasses.replace(entry(r, gib=g), findings=bad) for r, g in ((1, 90), (2, 30)))
    never = dataclasses.replace(entry(3), memory=None, duration=None, findings=(error("no-biases", "none"),))
    ranked, rejected, _ = order(example("lora").workload, [far, never, entry(4), near])
    assert [e.plan.method.r for e in ranked] == [4]
    assert [e.plan.method.r for e in rejected] == [2, 1, 3]


def test_what_every_plan_is_told_is_told_once() -> None:
    common, own = note("seeds-vary", "few rows"), note("odd", "only here")
    entries = [dataclasses.replace(e, findings=(*e.findings, common)) for e in (entry(1), entry(2))]
    entries[0] = dataclasses.replace(entries[0], findings=(*entries[0].findings, own))
    ranked, _, shared = order(example("lora").workload, entries)
    assert shared == (common,)
    assert [len(e.findings) for e in sorted(ranked, key=lambda e: e.plan.method.r)] == [2, 1]


@given(points=st.lists(st.floats(-5, 5), min_size=1, max_size=6), data=st.data())
def test_the_order_of_the_candidates_does_not_matter(points: list[float], data: st.DataObject) -> None:
    entries = [entry(i + 1, p) for i, p in enumerate(points)]
    shuffled = data.draw(st.permutations(entries))
    asked = example("lora").workload
    assert order(asked, entries) == order(asked, shuffled)
    ranked, _, _ = order(asked, entries)
    assert [e.tie for e in ranked] == sorted(e.tie for e in ranked)
    assert len(ranked) == len(points)
