"""The baseline of the demonstration: multinomial naive Bayes over words and pairs of words."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\b\w\w+\b")
SMOOTHING = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class NaiveBayes:
    """What a bag of words knows of each class.

    Example:
        >>> model = fit(["where is my card", "is the card here", "change the pin"], ["card", "card", "pin"])
        >>> model.predict("my card please"), model.predict("new pin")
        ('card', 'pin')
    """

    classes: tuple[str, ...]
    prior: tuple[float, ...]
    """Logarithm of each class's share of the rows."""
    likelihood: dict[str, tuple[float, ...]]
    """For each known term the logarithm of its share of each class's terms."""

    def predict(self, text: str) -> str:
        """The likeliest class; terms that no row had are left out."""
        known = [self.likelihood[t] for t in terms(text) if t in self.likelihood]
        scores = [sum(column) for column in zip(self.prior, *known, strict=True)]
        return self.classes[scores.index(max(scores))]


def terms(text: str) -> list[str]:
    """Words of at least two letters and pairs of neighbouring words, in lower case.

    Example:
        >>> terms("Where is my card?")
        ['where', 'is', 'my', 'card', 'where is', 'is my', 'my card']
    """
    words = _WORD.findall(text.lower())
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


def fit(texts: Sequence[str], labels: Sequence[str], smoothing: float = SMOOTHING) -> NaiveBayes:
    """Counts terms by class.

    Args:
        texts: The training rows.
        labels: Their classes.
        smoothing: Added to every count, so that a term which a class lacks does not rule it out.
    """
    classes = tuple(sorted(set(labels)))
    counts = {c: Counter[str]() for c in classes}
    for text, label in zip(texts, labels, strict=True):
        counts[label].update(terms(text))
    vocabulary = set().union(*counts.values())
    totals = [sum(counts[c].values()) + smoothing * len(vocabulary) for c in classes]
    return NaiveBayes(
        classes=classes,
        prior=tuple(math.log(labels.count(c) / len(labels)) for c in classes),
        likelihood={
            t: tuple(math.log((counts[c][t] + smoothing) / n) for c, n in zip(classes, totals, strict=True))
            for t in sorted(vocabulary)
        },
    )


def accuracy(predicted: Sequence[str], labels: Sequence[str]) -> float:
    """The share of rows that are right."""
    return sum(p == t for p, t in zip(predicted, labels, strict=True)) / len(labels)
