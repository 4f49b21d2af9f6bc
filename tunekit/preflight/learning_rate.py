"""A learning rate that is usual for another method."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.finding import Finding, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject

_FULL_HIGH, _ADAPTER_LOW, _ANY_HIGH = 1e-3, 1e-6, 0.5
_SMALL = 5_000_000
"""Below this many weights a model may be trained from nothing, where higher rates are usual."""


def _look(subject: Subject) -> Iterator[Finding]:
    if "adam" not in str(subject.args.optim).lower():
        return
    total = trainable = 0
    for p in subject.model.parameters():
        total += p.numel()
        trainable += p.numel() if p.requires_grad else 0
    rate, share = float(subject.args.learning_rate), trainable / max(1, total)
    if rate <= 0 or rate >= _ANY_HIGH or (share > 0.5 and total > _SMALL and rate > _FULL_HIGH):
        yield _finding(rate, share, "Adam moves each weight by about that much a step, which is more than pretrained weights bear",
                       "use 1e-5 to 1e-4" if share > 0.5 else "use 1e-4 to 5e-3") if rate > 0 else _finding(
            rate, share, "nothing moves", "use 1e-5 to 1e-4 for all weights, 1e-4 to 5e-3 for adapters")  # fmt: skip
    elif share < 0.2 and rate < _ADAPTER_LOW:
        yield _finding(rate, share, "new weights move too little to learn anything", "use 1e-4 to 5e-3 for adapters")


def _finding(rate: float, share: float, why: str, fix: str) -> Finding:
    return warning(
        "learning-rate-implausible", f"learning rate {rate:g} with {share:.1%} of the weights trained", why, fix
    )


CHECK = Check(
    slug="learning-rate",
    title="A learning rate that is implausible for the method.",
    codes=("learning-rate-implausible",),
    look=_look,
)
