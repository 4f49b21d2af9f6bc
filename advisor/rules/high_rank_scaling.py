"""Plain LoRA scaling holds high ranks back."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "huggingface/peft method_comparison, Llama-3.2-3B; Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023"
_HIGH = 64


def _judge(q: Question) -> Finding | None:
    method = q.plan.method
    rank = getattr(method, "r", 0)
    if method.slug != "lora" or rank < _HIGH or getattr(method, "use_rslora", False):
        return None
    return moves(
        "high-rank-scaling",
        -2.0,
        f"rank {rank} with the plain scaling gains little over lower ranks",
        "a 3B decoder: rank 64 gave 47.4, rank 32 gave 47.8, rank 64 with rank-stabilised scaling 51.3",
        _SOURCE,
        "set `use_rslora=True`",
    )


RULE = Rule(
    slug="high-rank-scaling",
    title="From rank 64 LoRA wants rank-stabilised scaling",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (example("lora", settings={"r": 64}),),
    silent=lambda: (example("lora", settings={"r": 64, "use_rslora": True}), example("lora", settings={"r": 16})),
)
