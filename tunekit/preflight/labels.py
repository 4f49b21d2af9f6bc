"""Class labels that the head cannot give, that never vary, or whose order is not the model's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.finding import Finding, error, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import IGNORED, Subject


def _look(subject: Subject) -> Iterator[Finding]:
    values = [x for r in subject.train for x in _classes(r.labels)]
    if not subject.classifies or not values:
        return
    count, kind = subject.config.num_labels, getattr(subject.config, "problem_type", None)
    multi = kind == "multi_label_classification"
    figures = kind == "regression" or count == 1 or multi
    if not figures and all(float(x).is_integer() for x in values):
        yield from _range([int(x) for x in values], count)
    if len(values) >= 8 and len({*values}) == 1:
        yield error(
            "labels-constant", f"all of {len(values)} labels are {values[0]:g}", "there is nothing to tell apart",
            "check the column that the labels come from, and that the rows are not sorted by class and cut",
        )  # fmt: skip
    yield from _order(subject)


def _classes(labels: Any) -> tuple:
    if labels is None:
        return ()
    return tuple(x for x in labels if x != IGNORED) if isinstance(labels, tuple) else (labels,)


def _range(values: list[int], count: int) -> Iterator[Finding]:
    outside = sorted({x for x in values if not 0 <= x < count and x != IGNORED})
    if outside:
        low = min(outside) < 0
        yield error(
            "labels-range", f"label {outside[0] if low else outside[-1]} with {count} classes",
            "the loss would index past the classes (on a GPU: a device-side assert)",
            "number the classes from 0" if low else f"load the model with `num_labels={outside[-1] + 1}`",
        )  # fmt: skip


def _order(subject: Subject) -> Iterator[Finding]:
    known = getattr(subject.config, "id2label", None) or {}
    names = [str(known[i]) for i in sorted(known)]
    theirs = [*subject.class_names]
    if theirs and names != theirs and sorted(names) == sorted(theirs):
        wrong = next(i for i, (a, b) in enumerate(zip(names, theirs, strict=True)) if a != b)
        yield warning(
            "labels-order", f"class {wrong} is {theirs[wrong]!r} in the data and {names[wrong]!r} in the model",
            "what the model says afterwards carries the wrong name", "set `id2label` and `label2id` from the data's own order",
        )  # fmt: skip


CHECK = Check(
    slug="labels",
    title="Labels outside the classes, constant, or in another order than the model's.",
    codes=("labels-range", "labels-constant", "labels-order"),
    look=_look,
)
