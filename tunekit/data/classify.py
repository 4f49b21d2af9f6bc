"""Encoders of sequence classification and multiple choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.data.labels import encode_labels
from tunekit.data.tally import Tally
from tunekit.data.texts import Batch, cut, inputs_of, note_cut, refuse_holes, refuse_nulls, set_apart, tokenize
from tunekit.errors import InvalidError
from tunekit.finding import error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def sequence_encoder(
    tokenizer: PreTrainedTokenizerBase, limit: int | None, names: Sequence[str], problem_type: str | None, tally: Tally
) -> Callable[[Batch, list[int]], Batch]:
    """One or two texts and their label; the longer text is cut first."""

    def encode(batch: Batch, rows: list[int]) -> Batch:
        refuse_nulls(batch, rows, [n for n in ("text", "text_pair") if n in batch])
        texts, pairs = batch["text"], batch.get("text_pair")
        encoded = tokenize(tokenizer, set_apart(tokenizer, texts) if pairs else texts, pairs, **cut(limit))
        note_cut(encoded, rows, limit, tally)
        labels = {"labels": encode_labels(batch["label"], names, problem_type)} if "label" in batch else {}
        return {**inputs_of(encoded), **labels}

    return encode


def choice_encoder(
    tokenizer: PreTrainedTokenizerBase, limit: int | None, tally: Tally
) -> Callable[[Batch, list[int]], Batch]:
    """A text with each of its choices: one sequence a choice, nested by row."""
    seen: list[int] = []

    def encode(batch: Batch, rows: list[int]) -> Batch:
        refuse_nulls(batch, rows, ("text", "choices"))
        choices = [list(c["text"]) if isinstance(c, dict) else list(c) for c in batch["choices"]]
        refuse_holes(choices, rows, "choices")
        seen.append(len(choices[0]))
        width = seen[0]
        for row, texts in zip(rows, choices, strict=True):
            if len(texts) != width or width < 2:
                raise InvalidError(
                    error("choices-uneven", f"row {row} has {len(texts)} choices, the first row {width}", "every row needs the same number, at least two", "fill up or drop rows")
                )  # fmt: skip
        texts = [text for text in batch["text"] for _ in range(width)]
        encoded = tokenize(tokenizer, set_apart(tokenizer, texts), [c for row in choices for c in row], **cut(limit))
        note_cut(encoded, rows, limit, tally, each=width)
        nested = {k: [v[i : i + width] for i in range(0, len(v), width)] for k, v in inputs_of(encoded).items()}
        if "label" not in batch:
            return nested
        marks = [c["label"] if isinstance(c, dict) else None for c in batch["choices"]]
        labels = [choice_index(*a) for a in zip(batch["label"], choices, marks, rows, strict=True)]
        return {**nested, "labels": labels}

    return encode


def choice_index(label: Any, texts: Sequence[str], marks: Sequence[Any] | None = None, row: int = 0) -> int:
    """Which choice a label means: an index from 0, the choice's own mark, its text, or a letter from A.

    Raises:
        InvalidError: `labels-range`.

    Example:
        >>> choice_index("B", ["yes", "no"]), choice_index(1, ["yes", "no"]), choice_index("no", ["yes", "no"])
        (1, 1, 1)
    """
    if marks and label in marks:
        return list(marks).index(label)
    if isinstance(label, str):
        if label in texts:
            return list(texts).index(label)
        word = label.strip().strip("().").upper()
        index = int(word) if word.isdecimal() else ord(word) - ord("A") if len(word) == 1 else -1
    else:
        index = label if isinstance(label, int) else -1
    if not 0 <= index < len(texts):
        raise InvalidError(
            error("labels-range", f"label {label!r} in row {row} with {len(texts)} choices", "it names none of them", "use the index from 0, a letter from A, or the choice's text")
        )  # fmt: skip
    return index
