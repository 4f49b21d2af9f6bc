"""Texts to tokens: the one place that calls a tokenizer, and what every encoder needs from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunekit.data.tally import Tally
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.finding import error

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

Batch = dict[str, list[Any]]
"""Columns of some rows: our column names going in, the model's inputs coming out."""

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What a tokenizer gives that models take."""


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Any, pairs: Any = None, **settings: Any) -> BatchEncoding:
    """The tokenizer without its advice on lengths; truncation only where it is asked for."""
    return tokenizer(texts, pairs, verbose=False, **settings)


def cut(limit: int | None) -> dict[str, Any]:
    """The tokenizer's settings that cut at `limit` tokens, specials kept; none where there is no limit."""
    return {} if limit is None else {"truncation": True, "max_length": limit}


def inputs_of(encoded: BatchEncoding) -> Batch:
    """The model's inputs out of what a tokenizer returned."""
    return {name: encoded[name] for name in MODEL_INPUTS if name in encoded}


def note_cut(encoded: BatchEncoding, rows: Sequence[int], limit: int | None, tally: Tally, each: int = 1) -> None:
    """Counts the rows that truncation shortened; `each` sequences make a row."""
    if limit is None:
        return
    parts = encoded.encodings
    for i, row in enumerate(rows):
        reached = [j for j in range(i * each, (i + 1) * each) if len(encoded["input_ids"][j]) >= limit]
        if any(parts is None or parts[j].overflowing for j in reached):
            tally.add("rows-truncated", row)


def joined_prompt(prompts: list[str], more: list[str | None] | None) -> list[str]:
    """Prompts with the text that completes them, a blank line between; an empty one adds nothing."""
    if more is None:
        return prompts
    return [f"{p}\n\n{m}" if m and m.strip() else p for p, m in zip(prompts, more, strict=True)]


def set_apart(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[str]:
    """First texts of pairs, with a line end where the tokenizer itself puts nothing between two texts (GPT-2's)."""
    parted = tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False)
    return texts if parted else [f"{text}\n" for text in texts]


def refuse_nulls(batch: Batch, rows: Sequence[int], names: Sequence[str]) -> None:
    """Raises `text-missing` where a text that every row needs is null."""
    faults = []
    for name in names:
        absent = [row for row, value in zip(rows, batch[name], strict=True) if value is None]
        if absent:
            faults.append(
                error("text-missing", f"row {absent[0]} has no `{name}`", f"so have {len(absent)} of the {len(rows)} rows around it", "drop rows without a text, or write an empty one")
            )  # fmt: skip
    if faults:
        raise InvalidError(*faults)


def refuse_holes(values: Sequence[Sequence[Any]], rows: Sequence[int], name: str) -> None:
    """Raises `text-missing` where a list of texts holds a null."""
    broken = [row for row, value in zip(rows, values, strict=True) if None in value]
    if broken:
        raise InvalidError(
            error("text-missing", f"row {broken[0]} has a null in `{name}`", f"so have {len(broken)} of the {len(rows)} rows around it", "write an empty text, or drop the rows")
        )  # fmt: skip


def knows_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a vocabulary holds more than marks such as `<pad>`.

    Beside a lone config.json transformers makes a tokenizer of the right class that knows no words, without a complaint:
    every text is empty or unknown to it.
    """
    try:
        vocabulary = tokenizer.get_vocab()
    except NotImplementedError:  # characters as they are: nothing to look up
        return True
    marks = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return any(token not in marks and token.strip("\u2581\u0120 ") for token in vocabulary)


def refuse_slow(tokenizer: PreTrainedTokenizerBase, task: str) -> None:
    """Raises `tokenizer-slow`: only the fast tokenizers tell where in the text a token stands."""
    if not tokenizer.is_fast:
        raise UnsupportedError(
            error("tokenizer-slow", f"tokenizer `{type(tokenizer).__name__}` with {task}", "it does not tell where in the text a token stands", "load the fast tokenizer of the model")
        )  # fmt: skip
