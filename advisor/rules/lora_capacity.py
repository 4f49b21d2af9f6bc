"""LoRA that holds fewer parameters than the data holds tokens to learn falls behind."""

from __future__ import annotations

import math

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "Biderman et al., LoRA Learns Less and Forgets Less, 2024; Schulman et al., LoRA Without Regret, 2025"


def _judge(q: Question) -> Finding | None:
    w = q.workload
    if q.plan.method.family != "lora" or q.memory is None or w.data.supervised_tokens is None:
        return None
    tokens = w.data.num_examples * w.data.supervised_tokens
    ratio = tokens / max(q.memory.trainable_parameters, 1)
    if ratio < 1:
        return None
    return moves(
        "lora-capacity",
        -min(4.0, 1.0 + 1.5 * math.log10(ratio)),
        f"{tokens / 1e6:,.0f} million tokens to learn, {q.memory.trainable_parameters / 1e6:,.1f} million parameters to hold them",
        "continued pretraining on code (20 billion tokens): 22.4 against 26.3 for full fine-tuning; mathematics (395,000 rows): 62.4 against 64.2",
        _SOURCE,
        "raise `r`, or fine-tune in full",
    )


def _example(method: str, num_examples: int, trainable: int = 20_000_000) -> Question:
    return example(
        method, task="causal-lm", side="decoder", num_parameters=8 * 10**9, num_examples=num_examples,
        trainable_parameters=trainable, data={"supervised_tokens": 200.0},
    )  # fmt: skip


RULE = Rule(
    slug="lora-capacity",
    title="LoRA needs about as many parameters as there are tokens to learn",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (_example("lora", 400_000), _example("lora", 100_000_000)),
    silent=lambda: (
        _example("lora", 10_000),
        _example("full", 400_000),
        _example("lora", 400_000, 160_000_000),
        example("lora"),
    ),
)
