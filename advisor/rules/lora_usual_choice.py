"""LoRA is where the comparison starts: it ties with full fine-tuning in most neutral comparisons."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = (
    "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, table 2; Mao et al., UniPELT, 2022, table 1 "
    "(1,000 rows); huggingface/peft method_comparison, Llama-3.2-3B on MetaMathQA"
)
_FEW = 300


def _judge(q: Question) -> Finding | None:
    if q.plan.method.family != "lora" or q.workload.data.num_examples <= _FEW:
        return None
    seen = {
        "encoder": "on a par with full fine-tuning at this size, and a fraction of it to store",
        "decoder": "on a par with full fine-tuning or better on instructions, with far less memory",
        "seq2seq": "close to full fine-tuning, with far less memory",
    }[q.workload.model.side]
    why = "GLUE 87.2 against 86.4 (RoBERTa-base), 72.3 against 71.9 (BERT-base, 1,000 rows), GSM8K 49.4 against 47.2 (3B decoder)"
    return moves("lora-usual-choice", 0.3, seen, why, _SOURCE)


RULE = Rule(
    slug="lora-usual-choice",
    title="Above some hundred rows LoRA ties with full fine-tuning in neutral comparisons",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (
        example("lora", num_examples=5000),
        example("lora", task="causal-lm", side="decoder", num_parameters=8 * 10**9),
    ),
    silent=lambda: (example("lora", num_examples=100), example("full", num_examples=5000)),
)
