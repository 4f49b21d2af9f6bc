"""Full fine-tuning of a decoder of a billion parameters and more brings nothing on a usual number of rows."""

from __future__ import annotations

from typing import Any

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "huggingface/peft method_comparison, Llama-3.2-3B on MetaMathQA; Hu et al., LoRA, 2021, table 16 (GPT-3 on 100 to 392,702 rows)"
_LARGE = 10**9
_USUAL = 50_000
_FEW = 300


def _judge(q: Question) -> Finding | None:
    w = q.workload
    large = w.model.side == "decoder" and w.model.num_parameters >= _LARGE
    if q.plan.method.family != "full" or not large or w.data.num_examples > _USUAL:
        return None
    few = w.data.num_examples <= _FEW
    if w.task.has_head and not few:
        return None
    return moves(
        "full-large-model",
        -3.0 if few else -2.0,
        f"no better than LoRA on {w.data.num_examples:,} rows, at several times the memory",
        "a 3B decoder on 20,000 rows: 47.2 against 49.4 for LoRA, 36 against 21 GiB; 175B on 100 rows: 60.2 against 63.8",
        _SOURCE,
    )


def _example(method: str, num_examples: int, **more: Any) -> Question:
    return example(
        method, task="causal-lm", side="decoder", num_parameters=8 * 10**9, num_examples=num_examples, **more
    )


RULE = Rule(
    slug="full-large-model",
    title="A decoder above a billion parameters gains nothing from full fine-tuning on up to 50,000 rows",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (
        _example("full", 20_000),
        _example("full", 100),
        example("full", side="decoder", num_parameters=8 * 10**9, num_examples=100),
    ),
    silent=lambda: (
        _example("lora", 20_000),
        _example("full", 400_000),
        example("full", num_examples=20_000),
        example("full", side="decoder", num_parameters=8 * 10**9, num_examples=20_000),
    ),
)
