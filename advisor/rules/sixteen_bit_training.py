"""Weights that are trained in bfloat16 themselves lose small updates."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "Zamirai et al., Revisiting BFloat16 Training, 2020"


def _judge(q: Question) -> Finding | None:
    if not q.plan.method.trains_base or q.plan.dtype == "float32":
        return None
    return moves(
        "sixteen-bit-training",
        -0.5,
        "trained in bfloat16 without fp32 copies, because those do not fit",
        "updates smaller than the last bit of a weight are rounded away; fp32 copies of what is trained avoid it",
        _SOURCE,
    )


RULE = Rule(
    slug="sixteen-bit-training",
    title="Training the base's weights in bfloat16 alone loses small updates",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (example("full", dtype="bfloat16"),),
    silent=lambda: (example("full", dtype="float32", mixed_precision="bf16"), example("lora", dtype="bfloat16")),
)
