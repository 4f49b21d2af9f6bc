"""Encoders of the tasks that write text: seq2seq and causal-lm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.data.chat import as_messages, has_chat_template, refuse_nameless, rendered
from tunekit.data.labels import IGNORE
from tunekit.data.tally import Tally
from tunekit.data.texts import Batch, cut, joined_prompt, note_cut, refuse_nulls, refuse_slow, tokenize
from tunekit.errors import UnsupportedError
from tunekit.finding import error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spans = list[tuple[int, int]]
"""Stretches of characters, from first to last-but-one."""


def seq2seq_encoder(
    tokenizer: PreTrainedTokenizerBase, limit: int | None, tally: Tally
) -> Callable[[Batch, list[int]], Batch]:
    """Something to read and something to write, each cut at `limit`."""

    def encode(batch: Batch, rows: list[int]) -> Batch:
        refuse_nulls(batch, rows, [n for n in ("source", "target") if n in batch])
        encoded = tokenize(tokenizer, joined_prompt(batch["source"], batch.get("input")), **cut(limit))
        note_cut(encoded, rows, limit, tally)
        out = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        if "target" not in batch:
            return out
        written = tokenizer(text_target=batch["target"], verbose=False, **cut(limit))
        note_cut(written, rows, limit, tally)
        return {**out, "labels": written["input_ids"]}

    return encode


def text_encoder(
    tokenizer: PreTrainedTokenizerBase, limit: int | None, tally: Tally
) -> Callable[[Batch, list[int]], Batch]:
    """Plain text, every token supervised, closed by the end-of-sequence token."""

    def encode(batch: Batch, rows: list[int]) -> Batch:
        refuse_nulls(batch, rows, ("text",))
        ids = [_closed(tokenizer, row) for row in tokenize(tokenizer, batch["text"])["input_ids"]]
        return _cut_rows(ids, [[True] * len(row) for row in ids], rows, limit, tally)

    return encode


def prompt_encoder(
    tokenizer: PreTrainedTokenizerBase, limit: int | None, tally: Tally, literal: bool = False
) -> Callable[[Batch, list[int]], Batch]:
    """A prompt with its completion; the loss sees the completion and what ends it.

    Through the chat template where the tokenizer has one. Otherwise the two texts are joined: as they are if `literal`,
    with a line end between where neither has white space there.
    """

    def encode(batch: Batch, rows: list[int]) -> Batch:
        refuse_nulls(batch, rows, ("prompt", "completion"))
        talk = has_chat_template(tokenizer)
        if not talk and not all(isinstance(v, str) for n in ("prompt", "completion") for v in batch[n]):
            raise UnsupportedError(_no_template(tokenizer))
        prompts = batch["prompt"]
        if isinstance(prompts[0], str):
            prompts = joined_prompt(prompts, batch.get("input"))
        if talk:
            for row, prompt, completion in zip(rows, prompts, batch["completion"], strict=True):
                refuse_nameless(prompt, row)
                refuse_nameless(completion, row)
            asked = [as_messages(p, "user") for p in prompts]
            told = [as_messages(c, "assistant") for c in batch["completion"]]
            chats = [[*p, *c] for p, c in zip(asked, told, strict=True)]
            return _encode_chats(tokenizer, chats, [len(p) for p in asked], rows, limit, tally)
        pairs = list(zip(prompts, batch["completion"], strict=True))
        texts = [_join(p, c, literal) for p, c in pairs]
        spans = [[(len(text) - len(c), len(text))] for text, (_, c) in zip(texts, pairs, strict=True)]
        ids, masks = _supervised(tokenizer, texts, spans, rows, tally, specials=True)
        closed = [_closed(tokenizer, row) for row in ids]
        masks = [m + [True] * (len(c) - len(m)) for m, c in zip(masks, closed, strict=True)]
        return _cut_rows(closed, masks, rows, limit, tally)

    return encode


def messages_encoder(
    tokenizer: PreTrainedTokenizerBase, limit: int | None, tally: Tally
) -> Callable[[Batch, list[int]], Batch]:
    """A conversation through the chat template; the loss sees what the assistant says."""
    if not has_chat_template(tokenizer):
        raise UnsupportedError(_no_template(tokenizer))

    def encode(batch: Batch, rows: list[int]) -> Batch:
        refuse_nulls(batch, rows, ("messages",))
        for row, value in zip(rows, batch["messages"], strict=True):
            refuse_nameless(value, row)
        chats = [as_messages(m, "user") for m in batch["messages"]]
        return _encode_chats(tokenizer, chats, [0] * len(chats), rows, limit, tally)

    return encode


def _no_template(tokenizer: PreTrainedTokenizerBase) -> Any:
    return error(
        "chat-template-missing", f"messages with tokenizer `{type(tokenizer).__name__}`", "it has no chat template to write them down with",
        "set `tokenizer.chat_template`, use the instruct variant's tokenizer, or give `prompt` and `completion` as texts",
    )  # fmt: skip


def _join(prompt: str, completion: str, literal: bool) -> str:
    apart = literal or not prompt or prompt[-1].isspace() or completion[:1].isspace()
    return prompt + completion if apart else f"{prompt}\n{completion}"


def _encode_chats(
    tokenizer: PreTrainedTokenizerBase,
    chats: list[list[dict[str, Any]]],
    first: list[int],
    rows: list[int],
    limit: int | None,
    tally: Tally,
) -> Batch:
    """Conversations as tokens; `first` is the index of the first message that may be supervised."""
    written = [rendered(tokenizer, c, f, row) for c, f, row in zip(chats, first, rows, strict=True)]
    ids, masks = _supervised(tokenizer, [t for t, _ in written], [s for _, s in written], rows, tally, specials=False)
    closing = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    for row, tokens, mask in zip(rows, ids, masks, strict=True):
        learnt = {t for t, m in zip(tokens, mask, strict=True) if m}
        if learnt and not learnt & closing:
            tally.add("rows-no-stop", row)
    return _cut_rows(ids, masks, rows, limit, tally)


def _supervised(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], spans: list[Spans], rows: list[int], tally: Tally, specials: bool
) -> tuple[list[list[int]], list[list[bool]]]:  # fmt: skip
    """Tokens of whole texts, and which of them stand in the spans; specials after the last span count as in it."""
    refuse_slow(tokenizer, "a loss on the answers only")
    encoded = tokenize(tokenizer, texts, add_special_tokens=specials, return_offsets_mapping=True)
    masks = []
    for row, offsets, inside in zip(rows, encoded["offset_mapping"], spans, strict=True):
        mask, astride = span_mask(offsets, inside)
        masks.append(mask)
        if astride:
            tally.add("rows-boundary", row)
    return encoded["input_ids"], masks


def span_mask(offsets: Sequence[tuple[int, int]], spans: Spans) -> tuple[list[bool], bool]:
    """Which tokens stand in one of the spans, and whether one begins before its span does.

    A token without width (a special that stands nowhere in the text) goes with the token before it.

    Example:
        >>> span_mask([(0, 2), (2, 5), (5, 7), (0, 0)], [(3, 7)])
        ([False, True, True, True], True)
    """
    import numpy as np

    low, high = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    real, mask, astride = low < high, np.zeros(len(low), dtype=bool), False
    for start, end in spans:
        held = real & (low < end) & (high > start)
        mask |= held
        astride |= bool((held & (low < start)).any())
    before = np.maximum.accumulate(np.where(real, np.arange(len(low)), -1))
    return np.where(before < 0, False, mask[before]).tolist(), astride


def _closed(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """The tokens with the end-of-sequence token at their end, where the tokenizer has one."""
    eos = tokenizer.eos_token_id
    return ids if eos is None or (ids and ids[-1] == eos) else [*ids, eos]


def _cut_rows(ids: list[list[int]], masks: list[list[bool]], rows: list[int], limit: int | None, tally: Tally) -> Batch:
    """Rows cut at the right; labels are the tokens where the mask says so, -100 elsewhere."""
    for row, tokens in zip(rows, ids, strict=True):
        if limit is not None and len(tokens) > limit:
            tally.add("rows-truncated", row)
    labels = [
        [t if m else IGNORE for t, m in zip(tokens[:limit], mask[:limit], strict=True)]
        for tokens, mask in zip(ids, masks, strict=True)
    ]
    kept = [row[:limit] for row in ids]
    return {"input_ids": kept, "attention_mask": [[1] * len(row) for row in kept], "labels": labels}
