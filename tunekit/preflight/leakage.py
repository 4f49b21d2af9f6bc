"""Rows to evaluate on that are trained on; rows that come many times."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.finding import Finding, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject

_LEAKED, _DOUBLE = 0.01, 0.2


def _look(subject: Subject) -> Iterator[Finding]:
    train, held = {*subject.train_keys}, subject.eval_keys
    leaked = sum(k in train for k in held)
    if held and leaked > _LEAKED * len(held):
        yield warning(
            "rows-leaked", f"{leaked:,} of {len(held):,} evaluation rows are training rows",
            "the metric measures memory, and the best checkpoint is chosen by it", "split before repeating, and drop what both hold",
        )  # fmt: skip
    double = len(subject.train_keys) - len(train)
    if double > _DOUBLE * max(1, len(subject.train_keys)):
        yield warning(
            "rows-duplicated", f"{double:,} of {len(subject.train_keys):,} training rows repeat another one",
            "they count several times and are learnt by heart first", "drop duplicates, or say by weight that they are meant",
        )  # fmt: skip


CHECK = Check(
    slug="leakage", title="Train and eval overlap; duplicates.", codes=("rows-leaked", "rows-duplicated"), look=_look
)
