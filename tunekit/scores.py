"""Scores from counts: F1, correlations, entities in tags. Pure, without a model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def ratio(part: float, whole: float) -> float:
    """`part / whole`, 0 where there is no whole."""
    return float(part) / float(whole) if whole else 0.0


def f1(right: float, predicted: float, actual: float) -> float:
    """Harmonic mean of precision and recall, from counts."""
    return ratio(2 * right, predicted + actual)


class Counts:
    """By class: how often it was right, predicted, actual. Grows with the classes seen."""

    def __init__(self) -> None:
        import torch

        self.right, self.predicted, self.actual = (torch.zeros(0, dtype=torch.int64) for _ in range(3))

    def add(self, predicted: torch.Tensor, actual: torch.Tensor) -> None:
        import torch

        size = max([len(self.right), *(int(t.max()) + 1 for t in (predicted, actual) if t.numel())])
        grown = []
        for old, new in ((self.right, actual[predicted == actual]), (self.predicted, predicted), (self.actual, actual)):
            counted = torch.bincount(new, minlength=size)
            counted[: len(old)] += old
            grown.append(counted)
        self.right, self.predicted, self.actual = grown

    @property
    def total(self) -> int:
        return int(self.actual.sum())

    @property
    def accuracy(self) -> float:
        return ratio(int(self.right.sum()), self.total)

    def macro(self) -> tuple[float, float, float]:
        """Mean precision, recall and F1 over the classes that occur in prediction or truth."""
        rows = [
            (r, p, a)
            for r, p, a in zip(self.right.tolist(), self.predicted.tolist(), self.actual.tolist(), strict=True)
            if p or a
        ]
        n = len(rows)
        return (
            ratio(sum(ratio(r, p) for r, p, _ in rows), n),
            ratio(sum(ratio(r, a) for r, _, a in rows), n),
            ratio(sum(f1(*row) for row in rows), n),
        )

    def matthews(self) -> float:
        """Gorodkin's correlation of several classes (2004), from the margins of the confusion matrix."""
        total, right = float(self.total), float(self.right.sum())
        p, a = self.predicted.double(), self.actual.double()
        spread = (total**2 - float(p @ p)) * (total**2 - float(a @ a))
        return ratio(right * total - float(p @ a), math.sqrt(spread)) if spread > 0 else 0.0


_TAG = re.compile(r"([BIESLUM])[-_](.+)")


def is_bio(names: Sequence[str]) -> bool:
    """Whether tags mark stretches: `O`, and `B-`, `I-`, ... of a type.

    Example:
        >>> is_bio(("B-person", "I-person", "O")), is_bio(("NOUN", "VERB"))
        (True, False)
    """
    tagged = [n for n in names if n != "O"]
    return bool(tagged) and all(_TAG.fullmatch(n) for n in tagged)


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first, last) of the entities in a row of tags, by the rule of CoNLL's `conlleval`.

    An entity begins at `B-` (or `S-`, `U-`), and at any other tag that follows `O`, an end, or another type; it ends before
    the next beginning and before `O`, and after `E-`, `L-`, `S-` and `U-`.

    References:
        Tjong Kim Sang and De Meulder, "Introduction to the CoNLL-2003 Shared Task", 2003.

    Example:
        >>> entities(["B-x", "I-x", "I-y", "O", "I-x"])
        [('x', 0, 1), ('y', 2, 2), ('x', 4, 4)]
    """
    found: list[tuple[str, int, int]] = []
    goes_on = ""  # type of the entity that the next tag may continue
    for i, tag in enumerate(tags):
        match = _TAG.fullmatch(tag)
        if match is None:
            goes_on = ""
            continue
        place, kind = match.groups()
        if kind == goes_on and place not in "BSU":
            found[-1] = (kind, found[-1][1], i)
        else:
            found.append((kind, i, i))
        goes_on = "" if place in "ELSU" else kind
    return found


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 1; equal values share their mean rank.

    Example:
        >>> import torch
        >>> ranks(torch.tensor([10.0, 30.0, 10.0])).tolist()
        [1.5, 3.0, 1.5]
    """
    import torch

    _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count.double() - 1) / 2)[place]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson's correlation; 0 where one side does not vary."""
    a, b = a - a.mean(), b - b.mean()
    spread = float(a.norm() * b.norm())
    return float(a @ b) / spread if spread > 1e-12 else 0.0
