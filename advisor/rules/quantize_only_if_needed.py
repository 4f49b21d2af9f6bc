"""Four bits cost a little quality and time, so they are for what does not fit otherwise."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023, table 4"


def _judge(q: Question) -> Finding | None:
    if q.plan.quantization is None:
        return None
    return moves(
        "quantize-only-if-needed",
        -0.3,
        f"a base in {'8' if q.plan.quantization == 'int8' else '4'} bits: as good within a point, slower, and only needed because of the memory",
        "LoRA on 7B and 13B decoders, 4 against 16 bits: 39.0/38.4, 44.5/45.6, 47.5/47.2, 50.7/50.6",
        _SOURCE,
    )


RULE = Rule(
    slug="quantize-only-if-needed",
    title="A quantised base is within a point of a 16-bit one, and slower",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (example("lora", quantization="nf4"),),
    silent=lambda: (example("lora"),),
)
