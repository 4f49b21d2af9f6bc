"""With few rows one run says little."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example
from tunekit.finding import Finding, note

_SOURCE = "Mosbach et al., On the Stability of Fine-tuning BERT, 2021; Dodge et al., Fine-Tuning Pretrained Language Models, 2020"
_FEW = 2500


def _judge(q: Question) -> Finding | None:
    if not 0 < q.workload.data.num_examples <= _FEW:
        return None
    return note(
        "seeds-vary",
        f"with {q.workload.data.num_examples:,} rows the score moves by points from one seed to the next",
        "the order of the rows and the new head's first values decide more than most settings",
        "train with three seeds (`seed: 1`, `2`, `3`) before believing a difference",
        _SOURCE,
    )


RULE = Rule(
    slug="seeds-vary",
    title="With up to 2,500 rows several seeds are needed to tell plans apart",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (example("lora", num_examples=1000),),
    silent=lambda: (example("lora", num_examples=10_000),),
)
