"""Rows far from anything that the model has seen: methods that mostly bring out what it can already do fall behind."""

from __future__ import annotations

import math
from typing import Any

from tunekit.advisor.rule import Question, Rule, example, moves, where_installed
from tunekit.finding import Finding

_SOURCE = (
    "Biderman et al., LoRA Learns Less and Forgets Less, 2024 (code, far from the base's pretraining, against mathematics, "
    "nearer to it); Petrov et al., When Do Prompting and Prefix-Tuning Work? A Theory of Capabilities and Limitations, 2024; "
    "Aghajanyan et al., Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning, 2021"
)
_FAR = {"decoder": 0.5, "seq2seq": 0.5, "encoder": 0.3}
"""Share of what guessing loses. A 124M decoder is at 0.31 on encyclopedic text and at 0.40 on the worst of the sets that it was
published with; a masked model has both sides to read from: 0.10 on its own kind of text, 0.19 on the worst published."""
_LEAST_ROWS = 1000
_ELICITING = ("prompts", "rescaling")


def _judge(q: Question) -> Finding | None:
    w = q.workload
    if w.data.own_loss is None or q.plan.objective is not None:
        return None
    share = w.data.own_loss / math.log(max(w.model.vocab_size, 2))
    if share < _FAR[w.model.side]:
        return None
    few_numbers = q.plan.method.family in _ELICITING or q.plan.method.slug == "bitfit"
    if few_numbers:
        return moves(
            "far-from-seen",
            -2.0,
            f"the rows are far from what the model has seen ({share:.0%} of what guessing loses), and this learns little new",
            "a prefix only steers attention that is already there; the worse a model knows the text, the more numbers a task takes",
            _SOURCE,
        )
    if q.plan.method.family != "full" or w.data.num_examples < _LEAST_ROWS:
        return None
    return moves(
        "far-from-seen",
        0.7,
        f"the rows are far from what the model has seen ({share:.0%} of what guessing loses), and this can learn most",
        "continued training of a 7B decoder: 26.3 against 22.4 for LoRA on code; on mathematics, nearer to what it knew, the gap is small",
        _SOURCE,
    )


def _example(method: str, own_loss: float | None, **more: Any) -> Question:
    facts: dict[str, Any] = {"task": "causal-lm", "side": "decoder", "num_parameters": 355_000_000, **more}
    return example(method, data={"own_loss": own_loss}, **facts)


RULE = Rule(
    slug="far-from-seen",
    title="Where the model's own loss on the rows is high, prompts and rescaling fall behind and full fine-tuning gains",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (
        _example("full", 6.0),
        _example("bitfit", 6.0),
        *where_installed("ia3", lambda: (_example("ia3", 6.0),)),
        _example("prefix-tuning", 4.0, task="sequence-classification", side="encoder"),
    ),
    silent=lambda: (
        _example("full", None),
        _example("full", 3.5),
        _example("full", 6.0, num_examples=100),
        _example("lora", 6.0),
    ),
)
