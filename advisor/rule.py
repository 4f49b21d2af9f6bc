"""Rule: a pure function of workload, plan and estimates that returns a Finding, with examples that fire and that do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunekit.discovery import find, slugs
from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.finding import Finding, Severity
from tunekit.plan import Plan
from tunekit.task import Task
from tunekit.workload import DataFacts, Goal, Hardware, ModelFacts, Side, Workload

GIB = 2**30


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
    plan's method gains or loses against the usual choice in this situation, which is LoRA on every linear layer. An
    `error` rules the plan out.
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


def moves(slug: str, points: float, seen: str, why: str, source: str, fix: str = "") -> Finding:
    """A Finding that moves a plan in the ranking: up by positive points, down by negative ones."""
    severity: Severity = "favours" if points > 0 else "disfavours"
    return Finding(code=slug, severity=severity, seen=seen, why=why, fix=fix, source=source, points=points)


def where_installed(method: str, build: Callable[[], tuple[Question, ...]]) -> tuple[Question, ...]:
    """A rule's examples of a method, or none where the method is not installed."""
    return build() if method in slugs("method") else ()


def example(
    method: str,
    *,
    settings: Mapping[str, Any] | None = None,
    task: str = "sequence-classification",
    side: Side = "encoder",
    num_parameters: int = 110_000_000,
    num_examples: int = 1000,
    data: Mapping[str, Any] | None = None,
    goal: Goal = "balanced",
    device_gib: float = 24,
    needed_gib: float = 4,
    trainable_parameters: int = 1_000_000,
    hours: float = 1.0,
    **plan: Any,
) -> Question:
    """A question for a rule's examples, from the few facts that matter to it.

    Args:
        method: Slug.
        settings: The method's settings.
        task: A task's name.
        side: Half of a transformer.
        num_parameters: Of the model.
        num_examples: Training rows.
        data: Further `DataFacts` fields.
        goal: The goal.
        device_gib: Memory of the one CUDA device in GiB.
        needed_gib: Predicted peak in GiB.
        trainable_parameters: Predicted.
        hours: Predicted duration.
        **plan: Further `Plan` fields.

    Example:
        >>> example("lora", num_examples=50).workload.data.num_examples
        50
    """
    kind = Task.named(task)
    size = int(needed_gib * GIB)
    facts: dict[str, Any] = (
        {"num_labels": 2, "problem_type": "single_label_classification"} if task == "sequence-classification" else {}
    )
    workload = Workload(
        model=ModelFacts(
            name="example", config_json="{}", model_type="example", side=side, num_parameters=num_parameters,
            num_layers=12, hidden_size=768, vocab_size=30_000, tasks=(task,),
        ),
        data=DataFacts(num_examples=num_examples, **{**facts, "lengths": (32, 64, 128), **(data or {})}),
        task=kind,
        hardware=Hardware(device="cuda", name="example", memory_bytes=int(device_gib * GIB)),
        goal=goal,
    )  # fmt: skip
    return Question(
        workload=workload,
        plan=Plan(model="example", task=task, method=find("method", method)(**(settings or {})), **plan),
        memory=MemoryEstimate(
            parts={"weights": size}, allocated_bytes=size, reserved_bytes=size, device_bytes=size, interval=(size, size),
            moment="backward", trainable_parameters=trainable_parameters, total_parameters=num_parameters,
        ),
        duration=TimeEstimate(
            step_seconds=1.0, num_steps=int(hours * 3600), total_seconds=hours * 3600, interval=(hours * 3000, hours * 4000), tokens_per_second=1000.0
        ),
    )  # fmt: skip
