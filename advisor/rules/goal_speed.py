"""For the goal `speed`: shorter runs first."""

from __future__ import annotations

import math

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "The predicted duration of this plan; three points each time it halves is this project's own weighing"


def _judge(q: Question) -> Finding | None:
    if q.workload.goal != "speed" or q.duration is None:
        return None
    hours = q.duration.total_seconds / 3600
    points = -3.0 * math.log2(max(hours, 1 / 3600))
    return moves("goal-speed", points, f"takes about {_text(hours)}", "the goal is a short run", _SOURCE)


def _text(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{max(hours * 60, 0.1):.1f} minutes"


RULE = Rule(
    slug="goal-speed",
    title="When the goal is speed, halving the time is worth three points; one hour counts zero",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (example("lora", goal="speed", hours=1), example("full", goal="speed", hours=10)),
    silent=lambda: (example("lora", goal="quality"),),
)
