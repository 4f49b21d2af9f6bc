"""Whether anything is learnt from the rows at all: the share of tokens that the loss counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.finding import Finding, error, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import IGNORED, Row, Subject

_LITTLE = 0.01


def _look(subject: Subject) -> Iterator[Finding]:
    rows = [r for r in subject.train if r.by_position]
    if not rows:
        if subject.train and all(r.labels is None for r in subject.train) and _wants_labels(subject):
            yield error(
                "labels-missing", "no `labels` in the collated rows", "the model returns no loss without them",
                "name the column `labels`, or use a collator that makes them",
            )  # fmt: skip
        return
    empty, trained = sum(r.trained == 0 for r in rows), sum(r.trained for r in rows)
    share = trained / max(1, sum(len(r.labels) for r in rows))
    if trained == 0:
        yield error(
            "supervision-none", f"every label of {len(rows)} rows is {IGNORED}", "the loss counts no token (it is nan or 0)",
            "look at the response template or the mask that sets the labels",
        )  # fmt: skip
    elif empty > 0.1 * len(rows):
        yield warning(
            "supervision-rows", f"{empty} of {len(rows)} rows have no supervised token", "they cost time and teach nothing",
            "raise the maximum length, or drop these rows",
        )  # fmt: skip
    elif share < _LITTLE:
        yield warning(
            "supervision-little", f"{share:.2%} of the tokens are supervised, such as {marked(rows[0], subject.tokenizer)}",
            "nearly the whole computation goes into text that is not learnt", "check the mask, or learn from the prompt too",
        )  # fmt: skip


def _wants_labels(subject: Subject) -> bool:
    return (subject.writes or subject.classifies) and not (subject.batch and "start_positions" in subject.batch)


def marked(row: Row, tokenizer: Any) -> str:
    """The row's text with the trained parts in double brackets; token numbers where there is no tokenizer.

    Example:
        >>> marked(Row(ids=(5, 6, 7), labels=(-100, 6, 7)), None)
        "'5 [[6 7]]'"
    """
    parts: list[tuple[bool, list[int]]] = []
    if len(row.labels) != len(row.ids):
        parts.append((True, [x for x in row.labels if x != IGNORED]))
    else:
        for token, label in zip(row.ids, row.labels, strict=True):
            if not parts or parts[-1][0] != (label != IGNORED):
                parts.append((label != IGNORED, []))
            parts[-1][1].append(token)
    texts = [(on, _text(tokens, tokenizer)) for on, tokens in parts]
    whole = ("" if tokenizer else " ").join(f"[[{t}]]" if on else t for on, t in texts)
    return repr(whole if len(whole) <= 240 else f"{whole[:80]} ... {whole[-150:]}")


def _text(tokens: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(tokens) if hasattr(tokenizer, "decode") else " ".join(map(str, tokens))


CHECK = Check(
    slug="supervision",
    title="No supervised tokens, or a share too small.",
    codes=("labels-missing", "supervision-none", "supervision-rows", "supervision-little"),
    look=_look,
)
