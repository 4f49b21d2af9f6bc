"""Training the normalisation layers alone: too little, and hardly measured."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves, where_installed
from tunekit.finding import Finding

_SOURCE = "huggingface/peft method_comparison, Llama-3.2-3B on MetaMathQA (layer norm tuning)"


def _judge(q: Question) -> Finding | None:
    if q.plan.method.slug != "layernorm-tuning":
        return None
    return moves(
        "norms-alone",
        -4.0,
        "learns too few numbers to keep up, and has hardly been compared",
        "a 3B decoder at its published settings solved none of the problems, with LoRA 49.4 %",
        _SOURCE,
    )


RULE = Rule(
    slug="norms-alone",
    title="Training the normalisation layers alone trails",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: where_installed("layernorm-tuning", lambda: (example("layernorm-tuning"),)),
    silent=lambda: (example("lora"),),
)
