"""Learnt vectors before the input only: for models far larger than most."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves, where_installed
from tunekit.finding import Finding

_SOURCE = (
    "huggingface/peft method_comparison, Llama-3.2-3B; He et al., Towards a Unified View of Parameter-Efficient Transfer "
    "Learning, 2022, table 6; Hu et al., LoRA, 2021, tables 4 and 16; Lester et al., The Power of Scale, 2021, table 1"
)
_SOFT = ("prompt-tuning", "p-tuning")
_HUGE = 10 * 10**9
_SOME = 20_000


def _judge(q: Question) -> Finding | None:
    if q.plan.method.slug not in _SOFT:
        return None
    w = q.workload
    if w.model.num_parameters < _HUGE:
        return moves(
            "soft-prompts",
            -10.0,
            "a prompt at the input alone is too little for a model of this size",
            "a 3B decoder: 34.3 and 35.0 against 49.4 for LoRA; summaries 16.0 against 21.3; it saves no memory either",
            _SOURCE,
            "take LoRA, or `p-tuning-v2` for a small file",
        )
    few = w.data.num_examples <= _SOME
    return moves(
        "soft-prompts",
        -8.0 if few else -1.5,
        "slow to learn from this few rows" if few else "nearly level at this size, for a file of a few kilobytes",
        "a 175B decoder: 37.6, 75.2, 79.5, 88.6 on 100 to 392,702 rows against 63.8, 85.6, 89.2, 91.7; 11B: 94.8 against 94.9 in full",
        _SOURCE,
    )


RULE = Rule(
    slug="soft-prompts",
    title="Prompts at the input alone only come near on models above ten billion parameters with much data",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: where_installed(
        "prompt-tuning",
        lambda: (
            example("prompt-tuning"),
            example("prompt-tuning", num_examples=100, side="seq2seq", num_parameters=11 * 10**9),
            example("prompt-tuning", num_examples=80_000, side="seq2seq", num_parameters=11 * 10**9),
        ),
    ),
    silent=lambda: (example("lora"),),
)
