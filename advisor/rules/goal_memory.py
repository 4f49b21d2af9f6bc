"""For the goal `memory`: the smallest peak first."""

from __future__ import annotations

import math

from tunekit.advisor.rule import GIB, Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "The predicted peak of this plan; three points each time it halves is this project's own weighing"


def _judge(q: Question) -> Finding | None:
    if q.workload.goal != "memory" or q.memory is None:
        return None
    points = -3.0 * math.log2(max(q.memory.device_bytes, 1) / (q.workload.hardware.memory_bytes / 2))
    return moves(
        "goal-memory", points, f"peaks at {q.memory.device_bytes / GIB:.1f} GiB",
        "the goal is little memory; activations weigh more than the number of trained parameters", _SOURCE,
    )  # fmt: skip


RULE = Rule(
    slug="goal-memory",
    title="When the goal is memory, halving the peak is worth three points; half the device counts zero",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (example("lora", goal="memory"), example("full", goal="memory", needed_gib=20)),
    silent=lambda: (example("lora", goal="quality"),),
)
