"""Encoders that look where tokens stand in the text: token classification and extractive question answering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.data.labels import IGNORE, encode_tags
from tunekit.data.tally import Tally
from tunekit.data.texts import (
    Batch,
    cut,
    inputs_of,
    note_cut,
    refuse_holes,
    refuse_nulls,
    refuse_slow,
    set_apart,
    tokenize,
)
from tunekit.errors import InvalidError
from tunekit.finding import error

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

DOC_STRIDE = 128
"""Tokens that neighbouring windows of one context share (Devlin et al., BERT, 2018), as far as windows are that long."""


# -------------------------------------------------------------------------------------------------------------- tokens
def token_encoder(
    tokenizer: PreTrainedTokenizerBase, limit: int | None, names: Sequence[str], tally: Tally
) -> Callable[[Batch, list[int]], Batch]:
    """Words with a tag each: a word's first sub-token carries the tag, the others -100.

    The words are joined by spaces and found again by their place in the text. So any fast tokenizer will do, byte-level
    ones without `add_prefix_space` included.
    """
    refuse_slow(tokenizer, "token-classification")

    def encode(batch: Batch, rows: list[int]) -> Batch:
        refuse_nulls(batch, rows, [n for n in ("tokens", "tags") if n in batch])
        refuse_holes(batch["tokens"], rows, "tokens")
        encoded = tokenize(tokenizer, [" ".join(t) for t in batch["tokens"]], return_offsets_mapping=True, **cut(limit))
        note_cut(encoded, rows, limit, tally)
        if "tags" not in batch:
            return inputs_of(encoded)
        _check_widths(batch, rows)
        labels = []
        for i, tags in enumerate(encode_tags(batch["tags"], names)):
            first = first_tokens(batch["tokens"][i], encoded["offset_mapping"][i])
            labels.append(_aligned(tags, first, len(encoded["input_ids"][i])))
            if len(first) < len(tags) and not _was_cut(encoded, i, limit):
                tally.add("words-lost", rows[i])
        return {**inputs_of(encoded), "labels": labels}

    return encode


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The first token of each word (by its index), for words joined by single spaces.

    Example:
        >>> first_tokens(["New", "York"], [(0, 0), (0, 3), (4, 6), (6, 8), (0, 0)])
        {0: 1, 1: 2}
    """
    found: dict[int, int] = {}
    word, start = 0, 0
    for token, (low, high) in enumerate(offsets):
        if low == high:
            continue
        while word < len(words) and start + len(words[word]) <= low:
            start += len(words[word]) + 1
            word += 1
        inside, begin = word, start
        # A token may begin with the space before its word, and so end in the next one.
        while inside < len(words) and begin < high:
            if inside not in found and begin + len(words[inside]) > low and words[inside]:
                found[inside] = token
                break
            begin += len(words[inside]) + 1
            inside += 1
    return found


def _aligned(tags: Sequence[int], first: dict[int, int], length: int) -> list[int]:
    labels = [IGNORE] * length
    for word, token in first.items():
        labels[token] = tags[word]
    return labels


def _was_cut(encoded: BatchEncoding, i: int, limit: int | None) -> bool:
    encodings = encoded.encodings or []
    return limit is not None and len(encoded["input_ids"][i]) >= limit and bool(encodings[i].overflowing)


def _check_widths(batch: Batch, rows: Sequence[int]) -> None:
    pairs = enumerate(zip(batch["tokens"], batch["tags"], strict=True))
    uneven = [i for i, (tokens, tags) in pairs if len(tokens) != len(tags)]
    if uneven:
        i = uneven[0]
        raise InvalidError(
            error("tags-length", f"row {rows[i]} has {len(batch['tokens'][i])} tokens and {len(batch['tags'][i])} tags", "every token needs one tag", "mend or drop the row")
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- answers
def answer_encoder(
    tokenizer: PreTrainedTokenizerBase, limit: int | None, tally: Tally
) -> Callable[[Batch, list[int]], Batch]:
    """A question with its context, in overlapping windows where it is longer than `limit`.

    Each window is a row of its own. `start_positions` and `end_positions` are the answer's first and last token; where
    the window does not hold the whole answer, or there is none, both point at the `[CLS]` token (the first token of
    models that have none).
    """
    refuse_slow(tokenizer, "question-answering")

    def encode(batch: Batch, rows: list[int]) -> Batch:
        refuse_nulls(batch, rows, ("question", "context"))
        questions = [q.strip() for q in batch["question"]]
        encoded = _windows(tokenizer, questions, batch["context"], limit)
        out = inputs_of(encoded)
        if "answers" not in batch:
            return out
        owners = encoded.get("overflow_to_sample_mapping", list(range(len(rows))))
        spans = [
            answer_span(c, a, row, tally) for c, a, row in zip(batch["context"], batch["answers"], rows, strict=True)
        ]
        places = [_positions(encoded, i, spans[owner], tokenizer) for i, owner in enumerate(owners)]
        return {**out, "start_positions": [s for s, _ in places], "end_positions": [e for _, e in places]}

    return encode


def _windows(
    tokenizer: PreTrainedTokenizerBase, questions: list[str], contexts: list[str], limit: int | None
) -> BatchEncoding:
    """Tokens of question and context; only the context is cut, into windows."""
    if limit is None:
        return tokenize(tokenizer, set_apart(tokenizer, questions), contexts, return_offsets_mapping=True)
    specials = tokenizer.num_special_tokens_to_add(pair=True)
    most = max((limit - specials) // 2, 1)
    asked = tokenize(tokenizer, questions, add_special_tokens=False, return_offsets_mapping=True)
    ends = [offsets[most - 1][1] if len(offsets) > most else None for offsets in asked["offset_mapping"]]
    questions = [q[:end] for q, end in zip(questions, ends, strict=True)]
    room = limit - specials - min(most, max(map(len, asked["input_ids"])))
    if room < 8:
        raise InvalidError(
            error("max-length-short", f"`max_length` {limit} with question-answering", "a window must hold the question, the specials and some context", "set `max_length=128` or more")
        )  # fmt: skip
    # The line end that may follow a question, and its cut by characters, move a token or two: `room // 2` is far enough.
    return tokenize(
        tokenizer, set_apart(tokenizer, questions), contexts, truncation="only_second", max_length=limit, stride=min(DOC_STRIDE, room // 2),
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip


def answer_span(context: str, answers: Any, row: int, tally: Tally) -> tuple[int, int] | None:
    """First and last-but-one character of the first answer in its context; None where there is no answer.

    Raises:
        InvalidError: `answer-missing`: the answer is not in the context, or in several places without a right offset.

    Example:
        >>> answer_span("It is in Oslo.", {"text": ["Oslo"], "answer_start": [9]}, 0, Tally())
        (9, 13)
    """
    text, start = _first_answer(answers)
    if not text:
        return None
    if start is not None and start >= 0 and context[start : start + len(text)] == text:
        return start, start + len(text)
    if context.count(text) == 1:
        if start is not None:
            tally.add("answers-moved", row)
        return context.index(text), context.index(text) + len(text)
    where = "nowhere" if text not in context else "in several places"
    raise InvalidError(
        error("answer-missing", f"the answer {text[:60]!r} of row {row}", f"it stands {where} in the context and `answer_start` is {start}", 'give `answers={"text": [...], "answer_start": [...]}` with characters counted from 0')
    )  # fmt: skip


def _first_answer(answers: Any) -> tuple[str | None, int | None]:
    """The first answer and its offset, from SQuAD's record of lists, a list of records, texts or one text."""
    if isinstance(answers, dict):
        texts, starts = answers.get("text") or [], answers.get("answer_start")
        texts = [texts] if isinstance(texts, str) else texts
        starts = [starts] if isinstance(starts, int) else starts or []
        return (texts[0] if texts else None), (starts[0] if starts else None)
    if isinstance(answers, list):
        return _first_answer(answers[0]) if answers else (None, None)
    return answers, None


def _positions(
    encoded: BatchEncoding, window: int, span: tuple[int, int] | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int]:
    """First and last token of the answer in this window, or the place that means no answer, twice."""
    ids = encoded["input_ids"][window]
    cls = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
    if span is None:
        return cls, cls
    offsets, part = encoded["offset_mapping"][window], encoded.sequence_ids(window)
    held = [t for t, s in enumerate(part) if s == 1 and offsets[t][0] < offsets[t][1]]
    if not held or offsets[held[0]][0] > span[0] or offsets[held[-1]][1] < span[1]:
        return cls, cls
    inside = [t for t in held if offsets[t][0] < span[1] and offsets[t][1] > span[0]]
    return (inside[0], inside[-1]) if inside else (cls, cls)
