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

    prior: dict[str, float]
    """Logarithm of each class's share of the rows."""
    likelihood: dict[str, dict[str, float]]
    """Logarithm of each known term's share of the class's terms."""
    vocabulary: frozenset[str]

    def predict(self, text: str) -> str:
        """The likeliest class; terms that no row had are left out."""
        known = [t for t in terms(text) if t in self.vocabulary]
        scores = {c: p + sum(self.likelihood[c][t] for t in known) for c, p in self.prior.items()}
        return max(scores, key=scores.__getitem__)


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
    counts: dict[str, Counter[str]] = {label: Counter() for label in sorted(set(labels))}
    for text, label in zip(texts, labels, strict=True):
        counts[label].update(terms(text))
    vocabulary = frozenset(t for c in counts.values() for t in c)
    totals = {c: sum(n.values()) + smoothing * len(vocabulary) for c, n in counts.items()}
    return NaiveBayes(
        prior={c: math.log(n / len(labels)) for c, n in Counter(labels).items()},
        likelihood={
            c: {t: math.log((counts[c][t] + smoothing) / totals[c]) for t in vocabulary} for c in counts
        },
        vocabulary=vocabulary,
    )  # fmt: skip


def accuracy(predicted: Sequence[str], labels: Sequence[str]) -> float:
    """The share of rows that are right."""
    return sum(p == t for p, t in zip(predicted, labels, strict=True)) / len(labels)
