"""Every rule on every candidate: Findings."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule
from tunekit.discovery import everything
from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.finding import Finding
from tunekit.plan import Plan
from tunekit.workload import Workload


def rules() -> dict[str, Rule]:
    """Every rule that is installed, by slug."""
    return everything("rule")


def judge(
    workload: Workload, plan: Plan, memory: MemoryEstimate | None = None, duration: TimeEstimate | None = None
) -> tuple[Finding, ...]:
    """What the rules say of one plan, the weightiest first.

    Args:
        workload: The question.
        plan: One candidate.
        memory: Its predicted memory; rules about memory are silent without.
        duration: Its predicted duration; likewise.
    """
    question = Question(workload=workload, plan=plan, memory=memory, duration=duration)
    found = [finding for rule in rules().values() if (finding := rule.judge(question)) is not None]
    return tuple(sorted(found, key=lambda f: (f.severity != "error", -abs(f.points), f.code)))
