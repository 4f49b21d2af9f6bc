"""With few rows one run says little."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example
from tunekit.finding import Finding, note

_SOURCE = "Mosbach et al., On the Stability of Fine-tuning BERT, 2021; Dodge et al., Fine-Tuning Pretrained Language Models, 2020; Gao et al., Making Pre-trained Language Models Better Few-shot Learners, 2021 (five samples of 16 rows a class: standard deviations of 1 to 14 points)"
_FEW, _VERY_FEW = 2500, 100


def _judge(q: Question) -> Finding | None:
    if not 0 < q.workload.data.num_examples <= _FEW:
        return None
    many = (
        "five seeds (`seed: 1` to `5`)"
        if q.workload.data.num_examples <= _VERY_FEW
        else "three seeds (`seed: 1`, `2`, `3`)"
    )
    return note(
        "seeds-vary",
        f"with {q.workload.data.num_examples:,} rows the score moves by points from one seed to the next",
        "the order of the rows and the new head's first values decide more than most settings",
        f"train with {many} before believing a difference",
        _SOURCE,
    )


RULE = Rule(
    slug="seeds-vary",
    title="With up to 2,500 rows several seeds are needed to tell plans apart",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (example("lora", num_examples=1000), example("lora", num_examples=64)),
    silent=lambda: (example("lora", num_examples=10_000),),
)
