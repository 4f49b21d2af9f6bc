"""For the goal `storage`: small files for each task, many of them served from one base."""

from __future__ import annotations

import math

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.finding import Finding

_SOURCE = "huggingface/peft method_comparison, file sizes on Llama-3.2-3B; 1.5 points for each factor of ten is this project's own weighing"
_BYTES = 4


def _judge(q: Question) -> Finding | None:
    if q.workload.goal != "storage" or q.memory is None:
        return None
    learnt = max(q.memory.trainable_parameters, 1)
    share = learnt / q.workload.model.num_parameters
    stored_bytes = _BYTES * learnt
    return moves(
        "goal-storage",
        -1.5 * math.log10(share / 0.01),
        f"stores {_text(stored_bytes)} for each task",
        "measured on a 3B decoder: 6.4 GB in full, 37 to 73 MB with LoRA, 1 to 3 MB with rescaling or prompts",
        _SOURCE,
    )


def _text(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{max(size_bytes / 1e6, 0.1):.1f} MB"


RULE = Rule(
    slug="goal-storage",
    title="When the goal is storage, a tenth of the file is worth 1.5 points; one per cent of the model counts zero",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (example("lora", goal="storage"), example("full", goal="storage", trainable_parameters=110_000_000)),
    silent=lambda: (example("lora", goal="quality"),),
)
