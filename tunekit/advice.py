"""Advice: ranked and rejected plans with estimates and findings; prints and serialises itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.finding import Finding
from tunekit.plan import Plan
from tunekit.workload import Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One plan that was considered."""

    plan: Plan
    memory: MemoryEstimate | None
    """None where it was refused before it was simulated."""
    duration: TimeEstimate | None
    findings: tuple[Finding, ...] = ()
    """Everything that rules and checks said of it."""
    score: float = 0.0
    """Points against the usual choice, after the goal's weighing; higher is better."""
    tie: int = 0
    """Entries with the same number are told apart by no evidence, only by memory, time and storage."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence for each finding that moved it, the weightiest first."""
        moved = [f for f in self.findings if f.severity in ("error", "favours", "disfavours")]
        return tuple(f.seen for f in sorted(moved, key=lambda f: (f.severity != "error", -abs(f.points))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The answer to a Workload."""

    workload: Workload
    ranked: tuple[Entry, ...]
    """Plans that were simulated to fit, best first."""
    rejected: tuple[Entry, ...]
    """Plans that cannot work or do not fit, each with a finding of severity error that says why."""
    findings: tuple[Finding, ...] = ()
    """What concerns the question as a whole: the data, the hardware, what was assumed."""
    version: str = ""
    """Version of tunekit, of its rules and of its catalogue."""
    make_trainer: Callable[..., Any] | None = field(default=None, repr=False, compare=False)
    """Handed in by `tunekit.advise`: how a plan becomes a Trainer."""

    @property
    def best(self) -> Entry | None:
        """The first entry, or None when nothing fits."""
        return self.ranked[0] if self.ranked else None
