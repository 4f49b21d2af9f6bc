"""Findings to an ordered Advice. "Nothing fits" is an answer, in bytes, not an exception.

The order, in words:

1. A plan's score is the sum of its findings' points. What concerns quality counts in full for the goals quality,
   balanced and latency and by half for the others; what concerns the goal counts in full.
2. Plans within one point of the leader of their group tie: no evidence tells them apart. The next plan opens a group.
3. Within a group the predicted figures decide, those that the goal asks for first; where the goal is quality and nothing
   else, what little the evidence says comes before them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from tunekit.advice import Entry
from tunekit.finding import Finding
from tunekit.workload import Goal, Workload

NOISE_POINTS = 1.0
"""Published differences below this are inside the noise of seeds: 103 of 200 cases have several winners within it."""
_QUALITY_WEIGHT: dict[Goal, float] = {
    "quality": 1.0, "balanced": 1.0, "latency": 1.0, "speed": 0.5, "memory": 0.5, "storage": 0.5, "retention": 0.5,
}  # fmt: skip
_TIME, _MEMORY, _STORAGE = 0, 1, 2
_BREAKERS: dict[Goal, tuple[float, float, float]] = {
    "quality": (1, 0.3, 0.1),
    "balanced": (1, 0.7, 0.2),
    "speed": (1, 0, 0),
    "memory": (0, 1, 0),
    "storage": (0, 0, 1),
    "retention": (1, 0.7, 0.2),
    "latency": (1, 0.7, 0.2),
}
"""Within a tie: how much a factor in time, memory and stored parameters weighs against each other."""


def order(
    workload: Workload, entries: Iterable[Entry]
) -> tuple[tuple[Entry, ...], tuple[Entry, ...], tuple[Finding, ...]]:
    """(ranked best first, rejected, findings that every plan shares).

    Args:
        workload: The question.
        entries: Every plan that was considered, with its findings; an `error` among them rejects it.
    """
    judged = list(entries)
    shared = _shared_notes(judged)
    judged = [replace(e, findings=tuple(f for f in e.findings if f not in shared)) for e in judged]
    sound = [replace(e, score=score(workload, e.findings)) for e in judged if not _refused(e)]
    rejected = tuple(sorted((e for e in judged if _refused(e)), key=_missing_bytes))
    return _grouped(workload, sound), rejected, shared


def score(workload: Workload, findings: Iterable[Finding]) -> float:
    """The sum of the points, weighed by the goal."""
    weight = _QUALITY_WEIGHT[workload.goal]
    return round(sum(f.points * (1.0 if f.code.startswith("goal-") else weight) for f in findings), 6)


def _refused(entry: Entry) -> bool:
    return any(f.severity == "error" for f in entry.findings)


def _grouped(workload: Workload, entries: list[Entry]) -> tuple[Entry, ...]:
    """Groups of plans within the noise of their leader, each ordered by the predicted figures."""
    left = sorted(entries, key=lambda e: (-e.score, *_name(e)))
    ranked: list[Entry] = []
    tie = 0
    while left:
        group = [e for e in left if e.score >= left[0].score - NOISE_POINTS]
        left = left[len(group) :]
        group.sort(key=lambda e: (-e.score if workload.goal == "quality" else 0.0, _cost(workload, e), *_name(e)))
        ranked += [replace(e, tie=tie) for e in group]
        tie += 1
    return tuple(ranked)


def _cost(workload: Workload, entry: Entry) -> float:
    """Time, memory and stored parameters as one figure, in factors, so that no unit matters."""
    weights = _BREAKERS[workload.goal]
    seconds = entry.duration.total_seconds if entry.duration else 1.0
    size, stored = (entry.memory.device_bytes, entry.memory.trainable_parameters) if entry.memory else (1, 1)
    return round(sum(w * math.log(max(x, 1)) for w, x in zip(weights, (seconds, size, stored), strict=True)), 9)


def _name(entry: Entry) -> tuple[str, str]:
    """Decides between plans that nothing else tells apart, so that the same question has the same answer."""
    return entry.plan.method.slug, entry.plan.to_json()


def _missing_bytes(entry: Entry) -> tuple[float, str, str]:
    """Rejected plans: the nearest to fitting first, then those that no memory would help."""
    needed = entry.memory.interval[1] if entry.memory else math.inf
    return (needed, *_name(entry))


def _shared_notes(entries: list[Entry]) -> tuple[Finding, ...]:
    """Notes and warnings that every plan carries: they concern the question, not the plan."""
    if not entries:
        return ()
    common = set.intersection(*({f for f in e.findings if f.severity in ("note", "warning")} for e in entries))
    return tuple(sorted(common, key=lambda f: f.code))
