"""Training only the last layers costs quality."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "Hu et al., LoRA, 2021, tables 3, 13, 14 (top two layers of GPT-2); Pfeiffer et al., AdapterFusion, 2021, table 1 (head only)"


def _judge(q: Question) -> Finding | None:
    if q.plan.method.slug != "partial":
        return None
    return moves(
        "partial-dominated",
        -4.0,
        "the layers below stay as they are, which costs quality; for lack of computing time only",
        "last two layers against full fine-tuning: 41.0 and 46.2, 36.0 and 46.5, 68.1 and 68.2 BLEU; the head alone 64.2 against 75.5 over 16 tasks",
        _SOURCE,
    )


RULE = Rule(
    slug="partial-dominated",
    title="Training the last layers only is dominated for quality",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (example("partial"),),
    silent=lambda: (example("full"), example("lora")),
)
