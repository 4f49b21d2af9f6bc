"""Accumulated steps whose rows weigh differently than in one large batch."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.finding import Finding, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    counts = [r.trained for r in subject.train if r.by_position]
    uneven = bool(counts) and max(counts) > 1.5 * max(1, min(counts))
    if subject.takes_loss_arguments is False and subject.args.gradient_accumulation_steps > 1 and uneven:
        yield warning(
            "accumulation-normalisation",
            f"{subject.args.gradient_accumulation_steps} accumulated batches with {min(counts)} to {max(counts)} trained tokens a row",
            "the model's loss takes no `num_items_in_batch`, so tokens of short batches weigh more",
            "use a model whose forward takes `**kwargs` for its loss, or pass `compute_loss_func`",
        )


CHECK = Check(
    slug="accumulation",
    title="Loss normalisation under accumulation.",
    codes=("accumulation-normalisation",),
    look=_look,
)
