"""Whether classes have names that a language model can say, and a first template to say them in."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunekit.workload import DataFacts, Side

_CODE = re.compile(r"(label|class|category|intent|type|tag)?[\s_-]*\d+", re.IGNORECASE)
_LONGEST = 3
"""Words of a name that still reads as a word or two in a sentence."""
_MOST = 30
"""With more classes than this a few words can no longer tell them apart in one place of a sentence."""
_INFERRED = {"entail": "Yes", "contradict": "No", "neutral": "Maybe", "not": "No"}


def nameable(label_names: Sequence[str]) -> bool:
    """Whether the names of the classes are words, each another: `sports` is one, `LABEL_3` and `17` are none.

    Example:
        >>> nameable(["World", "Sports", "Business", "Sci/Tech"]), nameable(["LABEL_0", "LABEL_1"]), nameable(["ABBR", "DESC"])
        (True, False, False)
    """
    said = [spoken(name) for name in label_names]
    fine = (name and not _CODE.fullmatch(label) for name, label in zip(said, label_names, strict=True))
    return 2 <= len(said) <= _MOST and len({*said}) == len(said) and all(fine)


def spoken(name: str) -> str:
    """A class's name as it is said: `card_arrival` is `card arrival`; empty where it is no word.

    Example:
        >>> spoken("card_arrival"), spoken("Sci/Tech"), spoken("NUM"), spoken("4")
        ('card arrival', 'sci tech', '', '')
    """
    words = [w for w in re.split(r"[\s_\-/&,.:]+", name.strip()) if w]
    plain = all(w.isalpha() and len(w) > 1 and not (w.isupper() and not _vowelled(w)) for w in words)
    shouted = len(words) == 1 and words[0].isupper() and len(words[0]) <= 4
    return " ".join(w.lower() for w in words) if words and plain and not shouted and len(words) <= _LONGEST else ""


def _vowelled(word: str) -> bool:
    return any(c in "AEIOUYaeiouy" for c in word)


def templates(data: DataFacts, side: Side) -> tuple[str, ...]:
    """Several phrasings: which one is best cannot be told beforehand, and an ensemble of them beats most single ones.

    What writes from left to right answers at the end.

    Example:
        >>> templates(DataFacts(num_examples=9, label_names=("good", "bad")), "decoder")
        ('{text} It was {mask}', '{text} In a word: {mask}', 'Text: {text} Answer: {mask}')
    """
    if data.infers and side == "encoder":
        return ("{text} ? {mask}, {text_pair}", '"{text}" ? {mask}. "{text_pair}"', "{text} ? {mask}. {text_pair}")
    if data.infers:
        return ("{text} Does it follow that {text_pair} {mask}", "{text} {text_pair} True? {mask}")
    fields = "{text} {text_pair}" if "text_pair" in dict(data.columns) else "{text}"
    if side == "encoder":
        return (f"{fields} It was {{mask}}.", f"{{mask}}: {fields}", f"{fields} This is about {{mask}}.")
    return (f"{fields} It was {{mask}}", f"{fields} In a word: {{mask}}", f"Text: {fields} Answer: {{mask}}")


def verbalizer(data: DataFacts) -> dict[str, tuple[str, ...]]:
    """Class to the word that stands for it.

    Example:
        >>> verbalizer(DataFacts(num_examples=9, label_names=("neg_review", "Good")))
        {'neg_review': ('neg review',), 'Good': ('good',)}
        >>> verbalizer(DataFacts(num_examples=9, label_names=("entailment", "not_entailment")))
        {'entailment': ('Yes',), 'not_entailment': ('No',)}
    """
    known = _INFERRED if data.infers else {}
    said = {n: next((w for k, w in known.items() if n.lower().startswith(k)), spoken(n)) for n in data.label_names}
    return {name: (word,) for name, word in said.items()}
