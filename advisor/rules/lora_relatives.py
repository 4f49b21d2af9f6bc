"""DoRA, PiSSA and LoRA+: small gains on large decoders and much data, by their own authors' account."""

from __future__ import annotations

from typing import Any

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = (
    "Liu et al., DoRA, 2024 (project's table); Meng et al., PiSSA, 2024 (project's table); huggingface/peft "
    "method_comparison, Llama-3.2-3B"
)
_LARGE, _MUCH = 10**9, 50_000


def _judge(q: Question) -> Finding | None:
    method: Any = q.plan.method
    if method.slug != "lora":
        return None
    w = q.workload
    suits = w.model.side == "decoder" and w.model.num_parameters >= _LARGE and w.data.num_examples >= _MUCH
    if method.use_dora:
        why = "commonsense, 170,000 rows, 7B: 78.4 against 76.3 and 79.7 against 77.6; mathematics, 20,000 rows, 3B: 46.9 against 47.8, a quarter slower"
        seen = "learns magnitude and direction apart, " + (
            "which paid on much data" if suits else "which did not pay on this much data, and is slower"
        )
        return moves("lora-relatives", 0.5 if suits else -0.6, seen, why, _SOURCE)
    if str(method.init_lora_weights).startswith("pissa"):
        seen = "starts from the weights' principal components, " + (
            "which paid on much data" if suits else "of which little is known on this much data"
        )
        return moves(
            "lora-relatives",
            0.5 if suits else -0.1,
            seen,
            "mathematics, 100,000 rows, 7B: 72.9 against 67.7, by its authors",
            _SOURCE,
        )
    return None


def _example(settings: dict[str, Any], num_examples: int) -> Question:
    return example(
        "lora", settings=settings, task="causal-lm", side="decoder", num_parameters=7 * 10**9, num_examples=num_examples
    )


RULE = Rule(
    slug="lora-relatives",
    title="DoRA and PiSSA gain a little on decoders above a billion parameters with 50,000 rows and more, and not below",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (
        _example({"use_dora": True}, 100_000),
        _example({"use_dora": True}, 5000),
        _example({"init_lora_weights": "pissa"}, 100_000),
    ),
    silent=lambda: (_example({}, 100_000), example("full")),
)
