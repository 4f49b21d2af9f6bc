"""BitFit trails, most of all with few rows and in generation."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = (
    "Mao et al., UniPELT, 2022, table 1; Hu et al., LoRA, 2021, tables 2 and 4; He et al., Towards a Unified View of "
    "Parameter-Efficient Transfer Learning, 2022, table 6"
)
_HUGE = 10 * 10**9


def _judge(q: Question) -> Finding | None:
    if q.plan.method.slug != "bitfit":
        return None
    points, seen, why = _measured(q)
    return moves("bitfit-limits", points, seen, why, _SOURCE)


def _measured(q: Question) -> tuple[float, str, str]:
    w = q.workload
    huge = w.model.num_parameters >= _HUGE
    if not w.task.has_head and huge:
        return (
            -2.5,
            "behind LoRA at writing, even on a model of this size",
            "summaries 51.3 against 53.8 ROUGE-1 (175B)",
        )
    if not w.task.has_head:
        return (
            -7.0,
            "biases alone are too little for generation",
            "summaries 17.3 against 21.9 ROUGE-2, translation 26.4 against 37.3 BLEU for full fine-tuning",
        )
    if huge:
        return -0.7, "slightly behind LoRA on a model of this size", "91.0 against 91.7 on entailment (175B)"
    if w.data.num_examples <= 300:
        return (
            -8.0,
            "near the bottom with so few rows",
            "average of eight tasks at 100 rows: 48.6 against 60.0 for full fine-tuning",
        )
    if w.data.num_examples <= 2000:
        return (
            -5.8,
            "near the bottom at this number of rows",
            "average of eight tasks at 1,000 rows: 66.5 against 72.3 for LoRA",
        )
    return (
        -2.0,
        "behind LoRA; worth it where every megabyte stored counts",
        "GLUE 85.2 against 87.2 for LoRA (RoBERTa-base)",
    )


RULE = Rule(
    slug="bitfit-limits",
    title="BitFit trails: by 2 points on large classification, by more with few rows and in generation",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (
        example("bitfit", num_examples=100),
        example("bitfit", num_examples=1000),
        example("bitfit", num_examples=50_000),
        example("bitfit", num_examples=50_000, num_parameters=175 * 10**9, side="decoder"),
        example("bitfit", task="seq2seq", side="seq2seq"),
        example("bitfit", task="causal-lm", num_parameters=175 * 10**9, side="decoder"),
    ),
    silent=lambda: (example("lora", num_examples=100),),
)
