"""Half precision overflows on some large models."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "artidoro/qlora README: computing in half precision, 20 % of the 7B runs failed"
_LARGE = 10**9


def _judge(q: Question) -> Finding | None:
    if q.plan.mixed_precision != "fp16" or q.workload.model.num_parameters < _LARGE:
        return None
    return moves(
        "half-precision-overflow",
        -0.5,
        "computes in half precision, which the device forces and which overflows on some large models",
        "a fifth of one project's 7B runs failed in half precision; bfloat16 has the range of fp32",
        _SOURCE,
        "use a device that multiplies bfloat16, if a run ends in NaN",
    )


RULE = Rule(
    slug="half-precision-overflow",
    title="Half precision overflows on some models above a billion parameters",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (example("lora", num_parameters=8 * 10**9, side="decoder", mixed_precision="fp16"),),
    silent=lambda: (
        example("lora", mixed_precision="fp16"),
        example("lora", num_parameters=8 * 10**9, mixed_precision="bf16"),
    ),
)
