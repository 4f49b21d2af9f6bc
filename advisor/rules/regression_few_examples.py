"""LoRA and prompts at their usual settings lag on regression with few rows."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = (
    "Mao et al., UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning, 2022, table 1 (STS-B)"
)
_FEW = 2000


def _judge(q: Question) -> Finding | None:
    w = q.workload
    if w.data.problem_type != "regression" or w.model.side != "encoder" or not 0 < w.data.num_examples <= _FEW:
        return None
    if q.plan.method.family not in ("lora", "prompts"):
        return None
    points = -8.0 if w.data.num_examples <= 300 else -4.0
    return moves(
        "regression-few-examples",
        points,
        f"lags on regression with {w.data.num_examples:,} rows",
        "rank correlation at 100 and 1,000 rows: full 74.1 and 86.4, bottleneck adapter 77.3 and 85.5, LoRA 49.4 and 81.6, prefix 57.7 and 82.4",
        _SOURCE,
    )


def _example(method: str, num_examples: int) -> Question:
    return example(method, num_examples=num_examples, data={"problem_type": "regression", "num_labels": 1})


RULE = Rule(
    slug="regression-few-examples",
    title="On regression with up to about 2,000 rows LoRA and prompts lose to full fine-tuning and adapters",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (_example("lora", 100), _example("lora", 1000)),
    silent=lambda: (_example("full", 100), _example("lora", 20_000), example("lora", num_examples=100)),
)
