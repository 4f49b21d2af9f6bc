"""Small decoders write from data better with LoRA than fully fine-tuned."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, tables 3, 13, 14 (GPT-2 medium)"
_LARGE = 10**9


def _judge(q: Question) -> Finding | None:
    w = q.workload
    small = w.model.side == "decoder" and w.model.num_parameters < _LARGE and w.task.name == "causal-lm"
    if q.plan.method.family != "full" or not small or not 1000 <= w.data.num_examples <= 100_000:
        return None
    return moves(
        "small-decoder-generation",
        -1.2,
        "overfits a little where LoRA does not, on data of this size",
        "BLEU of a 355M decoder on three data-to-text sets of 18,000 to 63,000 rows: 68.2, 46.2, 46.5 in full; 70.4, 47.1, 55.3 with LoRA",
        _SOURCE,
    )


def _example(method: str, num_examples: int, num_parameters: int = 355_000_000) -> Question:
    return example(method, task="causal-lm", side="decoder", num_parameters=num_parameters, num_examples=num_examples)


RULE = Rule(
    slug="small-decoder-generation",
    title="A decoder below a billion parameters with 1,000 to 100,000 rows prefers LoRA to full fine-tuning",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (_example("full", 20_000),),
    silent=lambda: (
        _example("lora", 20_000),
        _example("full", 500_000),
        _example("full", 20_000, 8 * 10**9),
        example("full", num_examples=20_000),
    ),
)
