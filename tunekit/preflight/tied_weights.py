"""Input and output embeddings that are one tensor, of which an adapter trains or replaces only one side."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.finding import Finding, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    config, model = subject.peft_config, subject.task_model
    tied = getattr(subject.config, "tie_word_embeddings", False)
    if config is None or not tied or getattr(config, "ensure_weight_tying", False):
        return
    get = getattr(model, "get_input_embeddings", None), getattr(model, "get_output_embeddings", None)
    ends = [g() if g else None for g in get]
    if any(e is None for e in ends):
        return
    touched = [any(p.requires_grad for p in e.parameters()) for e in ends if e is not None]
    if touched[0] != touched[1]:
        which, other = ("input", "output") if touched[0] else ("output", "input")
        yield warning(
            "tied-weights", f"the {which} embeddings learn and the {other} embeddings, which are the same tensor, do not",
            "the two part during training; what is merged and saved as a whole model keeps one of them for both",
            "pass `ensure_weight_tying=True` in PEFT's configuration, or train neither or both",
        )  # fmt: skip


CHECK = Check(
    slug="tied-weights", title="Tied embeddings of which one side learns.", codes=("tied-weights",), look=_look
)
