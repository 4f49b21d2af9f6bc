"""For the goal `latency`: what cannot be folded into the weights slows every answer."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, table 1"


def _judge(q: Question) -> Finding | None:
    method = q.plan.method
    if q.workload.goal != "latency":
        return None
    if method.trains_base or (method.merges and q.plan.quantization is None):
        return moves(
            "goal-latency",
            0.5,
            "adds nothing to each answer's time",
            "what it learns lies in the base's own weights, or is merged into them",
            _SOURCE,
        )
    if method.merges:
        return moves(
            "goal-latency",
            -2.0,
            "cannot be merged cleanly into a quantised base",
            "the merged weights would have to be rounded again",
            _SOURCE,
            "load the base in 16 bits for serving and merge there",
        )
    return moves(
        "goal-latency",
        -3.0,
        "stays beside the weights and slows every answer",
        "bottleneck adapters took 21 to 30 % longer at batch 1 and 128 tokens, 2 to 3 % at batch 32",
        _SOURCE,
    )


RULE = Rule(
    slug="goal-latency",
    title="When the goal is latency, methods that merge into the weights are preferred",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (
        example("full", goal="latency"),
        example("lora", goal="latency"),
        example("lora", goal="latency", quantization="nf4"),
    ),
    silent=lambda: (example("lora", goal="quality"),),
)
