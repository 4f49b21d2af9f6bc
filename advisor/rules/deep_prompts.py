"""Learnt keys and values in every layer: close to LoRA with enough rows for an encoder, behind on large decoders."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = (
    "Mao et al., UniPELT, 2022, table 1; Hu et al., LoRA, 2021, tables 3, 4, 13 to 16; He et al., Towards a Unified "
    "View of Parameter-Efficient Transfer Learning, 2022, table 6; huggingface/peft method_comparison"
)
_DEEP = ("prefix-tuning", "p-tuning-v2")
_LARGE = 10**9
_FEW = 300
_FEW_A_CLASS = 100
"""The published sets of 100 rows hold some 50 a class, those of 1,000 rows some 500; the line is drawn between."""
_SOME = 2000


def _judge(q: Question) -> Finding | None:
    w = q.workload
    if q.plan.method.slug not in _DEEP or w.data.problem_type == "regression":
        return None
    points, seen, why = (_understands if w.task.has_head else _writes)(q)
    return moves("deep-prompts", points, seen, why, _SOURCE)


def _understands(q: Question) -> tuple[float, str, str]:
    rows, large = q.workload.data.num_examples, q.workload.model.num_parameters >= _LARGE
    per_class = q.workload.data.examples_per_class
    if rows <= _FEW or (per_class is not None and per_class <= _FEW_A_CLASS):
        why = "over eight tasks with 100 rows 48.0 against 60.0 for full fine-tuning; a 175B decoder 48.3 against 63.8 for LoRA"
        return -8.0, "slow to learn from so few rows", why
    if large:
        return (
            -3.0,
            "behind LoRA on a decoder of this size",
            "a 175B decoder on 1,000, 10,000 and 392,702 rows: 82.5, 85.9, 89.6 against 85.6, 89.2, 91.7",
        )
    if rows <= _SOME:
        return (
            -0.8,
            "about level with LoRA at this number of rows",
            "over eight tasks with 1,000 rows 71.8 against 72.3 for LoRA and 71.0 for adapters",
        )
    return (
        -1.2,
        "rarely the best on an encoder with this many rows",
        "within a point of the best in 3 of 8 published comparisons above 10,000 rows, LoRA in 14 of 21",
    )


def _writes(q: Question) -> tuple[float, str, str]:
    model = q.workload.model
    if model.side == "decoder" and model.num_parameters >= _LARGE:
        return (
            -6.0,
            "well behind LoRA on a decoder of this size",
            "a 3B decoder on 20,000 rows: 41.6 at its best settings against 49.4",
        )
    if model.side == "decoder":
        return (
            -0.5,
            "close to LoRA at writing from data",
            "BLEU on three data-to-text sets: 69.7, 46.4, 55.1 against 70.4, 47.1, 55.3",
        )
    return (
        -1.2,
        "behind full fine-tuning and adapters at writing",
        "summaries 20.5 against 21.9 ROUGE-2, translation 35.6 against 37.3 BLEU for full fine-tuning",
    )


RULE = Rule(
    slug="deep-prompts",
    title="Prefixes in every layer are level with LoRA on an encoder with about 1,000 rows, and behind elsewhere",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (
        example("prefix-tuning", num_examples=100),
        example("p-tuning-v2", num_examples=1000),
        example("p-tuning-v2", num_examples=50_000),
        example("prefix-tuning", num_examples=50_000, side="decoder", num_parameters=8 * 10**9),
        example("prefix-tuning", task="causal-lm", side="decoder", num_parameters=8 * 10**9),
        example("prefix-tuning", task="causal-lm", side="decoder"),
        example("prefix-tuning", task="seq2seq", side="seq2seq"),
    ),
    silent=lambda: (
        example("lora", num_examples=100),
        example("prefix-tuning", num_examples=100, data={"problem_type": "regression", "num_labels": 1}),
    ),
)
