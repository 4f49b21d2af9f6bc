"""A row as prompts: every template written out, with demonstrations before it, cut where the text is and nowhere else."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunekit.errors import InvalidError
from tunekit.finding import error
from tunekit.objectives._label_words import Place, covered, stand_in
from tunekit.objectives._template import Span, Written, joined, write

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Values = dict[str, str]
"""One text a field."""


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled row that may be shown before others."""

    values: Values
    label: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as tokens, and where in it each of them stands."""

    ids: list[int]
    offsets: list[Span]
    written: Written
    was_cut: bool = False


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows to show, by class."""

    by_class: Mapping[int, Sequence[Example]]
    words: Sequence[str]
    """The word that fills the blank, by class."""
    count: int
    """So many of each class."""
    seed: int
    separator: str

    def drawn(self, row: int, values: Values) -> list[Example]:
        """The examples before one row, the same in every run; never the row itself."""
        draw, found = random.Random(f"{self.seed}-{row}"), []
        for label in sorted(self.by_class):
            others = [e for e in self.by_class[label] if e.values != values]
            found += draw.sample(others, min(self.count, len(others)))
        draw.shuffle(found)
        return found


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes rows through one template."""

    tokenizer: PreTrainedTokenizerBase
    place: Place
    limit: int | None
    """The longest text in tokens."""
    examples: Examples | None = None
    soft: tuple[int, ...] = ()
    """The tokens that are this template's soft ones."""
    shown: Sequence[Example] = field(default=())

    def texts(self, rows: Sequence[int], values: Sequence[Values], filling: str) -> list[Tokens]:
        """Rows as tokens, with `filling` in the blank; a text beyond the limit is cut at its fields, the longest first."""
        shown = [self.examples.drawn(r, v) if self.examples else [] for r, v in zip(rows, values, strict=True)]
        written = [self._written(v, s, filling) for v, s in zip(values, shown, strict=True)]
        made = self._tokens(written)
        return [
            t if self.limit is None or len(t.ids) <= self.limit else self._cut(t, v, s, filling, row)
            for t, v, s, row in zip(made, values, shown, rows, strict=True)
        ]

    def _written(self, values: Values, shown: Sequence[Example], filling: str) -> Written:
        keeps = stand_in(self.tokenizer) if self.soft else ""
        row = write(self.place.pieces, values, filling, keeps)
        if not shown or self.examples is None:
            return joined([row], "")
        words = self.examples.words
        before = [write(self.place.pieces, e.values, words[e.label], keeps) for e in shown]
        return joined([*before, row], self.examples.separator)

    def _tokens(self, written: Sequence[Written]) -> list[Tokens]:
        made = self.tokenizer([w.text for w in written], return_offsets_mapping=True, verbose=False)
        pairs = zip(made["input_ids"], made["offset_mapping"], written, strict=True)
        return [Tokens(self._softened(ids, spans, w), spans, w) for ids, spans, w in pairs]

    def _softened(self, ids: list[int], offsets: list[Span], written: Written) -> list[int]:
        """The soft tokens in place of what kept their places; a demonstration's are the same ones."""
        ids = list(ids)
        for n, span in enumerate(written.soft):
            for i in covered(offsets, span):
                ids[i] = self.soft[n % len(self.soft)]
        return ids

    def _cut(self, made: Tokens, values: Values, shown: Sequence[Example], filling: str, row: int) -> Tokens:
        assert self.limit is not None
        texts = [dict(e.values) for e in shown] + [dict(values)]
        for _ in range(20):
            over = len(made.ids) - self.limit
            if over <= 0:
                return Tokens(made.ids, made.offsets, made.written, was_cut=True)
            inside = [(name, span, covered(made.offsets, span)) for name, span in made.written.fields]
            keep = _shared([len(tokens) for _, _, tokens in inside], over)
            if keep is None:
                break
            for (name, (start, _), tokens), count in zip(inside, keep, strict=True):
                if count < len(tokens):
                    which, own = name.split(":", 1)
                    end = made.offsets[tokens[count]][0] - start
                    texts[int(which)][own] = texts[int(which)][own][: max(0, end)].rstrip()
            cut = [Example(v, e.label) for v, e in zip(texts, shown, strict=False)]
            made = self._tokens([self._written(texts[-1], cut, filling)])[0]
        raise InvalidError(
            error("prompt-too-long", f"row {row} with `max_length` {self.limit}", "template, label word and demonstrations fill it without any text", "set a larger `max_length`, a shorter template, or fewer `demonstrations`")
        )  # fmt: skip


def _shared(lengths: Sequence[int], over: int) -> list[int] | None:
    """Lengths with `over` taken away in all, from the longest first; None where there is not so much.

    Example:
        >>> _shared([10, 4, 2], 7)
        [4, 3, 2]
    """
    kept = list(lengths)
    if sum(kept) < over:
        return None
    ceiling = max(kept)
    while sum(min(n, ceiling) for n in kept) > sum(lengths) - over:
        ceiling -= 1
    spare = sum(lengths) - over - sum(min(n, ceiling) for n in kept)
    shared = []
    for n in kept:
        extra = 1 if n > ceiling and spare > 0 else 0
        spare -= extra
        shared.append(min(n, ceiling) + extra)
    return shared


def filling_of(place: Place, num_masks: int, word: str) -> str:
    """What stands in a template's blank in the text that is tokenised."""
    return {"mask": place.blank * num_masks, "next": word}.get(place.kind, place.blank)


def value_of(value: Any, row: int, name: str) -> str:
    """A field's text.

    Raises:
        InvalidError: `text-missing`.
    """
    if value is None:
        raise InvalidError(
            error("text-missing", f"row {row} has no `{name}`", "the template writes it out", "drop rows without a text, or write an empty one")
        )  # fmt: skip
    return str(value)
