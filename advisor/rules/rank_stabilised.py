"""Rank-stabilised scaling makes high ranks pay on much text."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = (
    "huggingface/peft method_comparison, Llama-3.2-3B; Kalajdzievski, A Rank Stabilization Scaling Factor for "
    "Fine-Tuning with LoRA, 2023"
)
_HIGH = 64
_LARGE = 10**9
_MUCH = 10_000


def _judge(q: Question) -> Finding | None:
    method, w = q.plan.method, q.workload
    high = method.slug == "lora" and getattr(method, "use_rslora", False) and getattr(method, "r", 0) >= _HIGH
    writes = w.task.name == "causal-lm" and w.model.num_parameters >= _LARGE and w.data.num_examples >= _MUCH
    if not (high and writes):
        return None
    return moves(
        "rank-stabilised",
        1.2,
        "a high rank with rank-stabilised scaling, which pays on this much text",
        "a 3B decoder on 20,000 rows: rank 64 so scaled 51.3, rank 32 with plain scaling 47.8; it also forgets more",
        _SOURCE,
    )


def _example(settings: dict[str, object], num_examples: int = 20_000) -> Question:
    return example(
        "lora", settings=settings, task="causal-lm", side="decoder", num_parameters=3 * 10**9, num_examples=num_examples
    )


RULE = Rule(
    slug="rank-stabilised",
    title="On a decoder above a billion parameters and 10,000 rows, rank 64 with rank-stabilised scaling is favoured",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (_example({"r": 64, "use_rslora": True}),),
    silent=lambda: (
        _example({"r": 64}),
        _example({"r": 16, "use_rslora": True}),
        _example({"r": 64, "use_rslora": True}, num_examples=500),
        example("lora", settings={"r": 64, "use_rslora": True}, num_examples=20_000),
    ),
)
