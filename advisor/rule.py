"""Rule: a pure function of workload, plan and estimates that returns a Finding, with examples that fire and that do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.finding import Finding
from tunekit.plan import Plan
from tunekit.workload import Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a rule may look at, and nothing else."""

    workload: Workload
    plan: Plan
    memory: MemoryEstimate | None = None
    duration: TimeEstimate | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One piece of advice with its evidence. A file of `advisor/rules` defines one, under the file's name as slug.

    The ranking adds the `points` of the findings: points of the task's score (0 to 100) that the evidence says the
    plan's method gains or loses against the usual choice in this situation. An `error` rules the plan out.
    """

    slug: str
    """Stable name; equal to the file's name with hyphens, and to the `code` of its findings."""
    title: str
    """One line: when it fires and what it says."""
    source: str
    """The published result or measurement it rests on."""
    judge: Callable[[Question], Finding | None]
    """The rule itself; pure."""
    fires: Callable[[], tuple[Question, ...]]
    """Questions on which it returns a finding."""
    silent: Callable[[], tuple[Question, ...]]
    """Questions on which it returns None."""
