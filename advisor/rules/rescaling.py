"""IA3: for few rows and a large instructed seq2seq model; elsewhere behind LoRA."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves, where_installed
from tunekit.finding import Finding

_SOURCE = (
    "Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, 2022 (RAFT); "
    "huggingface/peft method_comparison, Llama-3.2-3B"
)
_LARGE = 3 * 10**9
_FEW, _SOME = 100, 1000


def _judge(q: Question) -> Finding | None:
    w = q.workload
    if q.plan.method.family != "rescaling":
        return None
    large = w.model.side == "seq2seq" and w.model.num_parameters >= _LARGE
    if large and _FEW < w.data.num_examples <= _SOME:
        return None
    if large and 0 < w.data.num_examples <= _FEW:
        return moves(
            "rescaling",
            2.0,
            "learns from a few dozen rows on a model of this size",
            "eleven tasks with 50 labels each: 75.8 with an 11B model, 69.6 for cloze training of a smaller one",
            _SOURCE,
        )
    return moves(
        "rescaling",
        -3.0,
        "learns too few numbers to keep up; for files of a megabyte",
        "a 3B decoder on 20,000 rows: 45.5 at its best settings, 31.1 at a low learning rate, against 49.4 for LoRA",
        _SOURCE,
    )


RULE = Rule(
    slug="rescaling",
    title="IA3 suits a few dozen rows on a seq2seq model above three billion parameters; elsewhere it trails",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: where_installed(
        "ia3",
        lambda: (
            example("ia3"),
            example("ia3", side="seq2seq", num_parameters=11 * 10**9, num_examples=50),
        ),
    ),
    silent=lambda: (
        example("lora"),
        example("full"),
        *where_installed("ia3", lambda: (example("ia3", side="seq2seq", num_parameters=11 * 10**9, num_examples=500),)),
    ),
)
