"""Inference between two texts on few rows: deep prompts and adapters learn it where full fine-tuning overfits."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = (
    "Mao et al., UniPELT, 2022, table 1 (RTE, MNLI, QNLI at 1,000 rows); Hu et al., LoRA, 2021, table 2 (RTE); Pfeiffer et "
    "al., AdapterFusion, 2021, table 1 (RTE, CB)"
)
_LEAST, _MOST = 300, 5000
_DEEP = ("prefix-tuning", "p-tuning-v2")


def _judge(q: Question) -> Finding | None:
    w, rows = q.workload, q.workload.data.num_examples
    if w.model.side != "encoder" or not w.data.infers or not _LEAST < rows <= _MOST:
        return None
    if q.plan.method.slug in _DEEP:
        why = "accuracy at 1,000 rows: prefix 66.7, 63.6 and 80.3, LoRA 65.6, 61.3 and 81.0, full 62.3, 62.0 and 79.0"
        return moves("inference-pairs", 2.0, "learns inference between two texts from this few rows", why, _SOURCE)
    if q.plan.method.family == "full" and q.plan.objective is None:
        why = "full against adapters or LoRA: 65.4 and 71.0, 82.5 and 86.1, 78.7 and 86.6 on 250 to 2,490 rows"
        return moves("inference-pairs", -1.5, "overfits inference between two texts on this few rows", why, _SOURCE)
    return None


_NAMES = {"label_names": ("entailment", "not_entailment")}

RULE = Rule(
    slug="inference-pairs",
    title="Inference between two texts on 300 to 5,000 rows: deep prompts or LoRA rather than full fine-tuning",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (
        example("prefix-tuning", num_examples=1000, data=_NAMES),
        example("full", num_examples=2500, data=_NAMES),
    ),
    silent=lambda: (
        example("lora", num_examples=1000, data=_NAMES),
        example("full", num_examples=100, data=_NAMES),
        example("full", num_examples=50_000, data=_NAMES),
        example("full", num_examples=1000, data={"label_names": ("good", "bad")}),
    ),
)
