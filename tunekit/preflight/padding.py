"""Padding that decoder models cannot tell from text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.finding import Finding, error, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject


def _look(subject: Subject) -> Iterator[Finding]:
    pad = getattr(subject.config, "pad_token_id", None)
    theirs = getattr(subject.tokenizer, "pad_token_id", None)
    if subject.classifies and _pools_last(subject):
        if pad is None and subject.args.per_device_train_batch_size > 1:
            yield error(
                "padding-id-missing", "`config.pad_token_id` is None in a decoder that classifies",
                "it reads its answer off the last token that is no padding, and cannot tell which",
                "set `model.config.pad_token_id = tokenizer.pad_token_id`",
            )  # fmt: skip
        elif pad is not None and theirs is not None and pad != theirs:
            yield error(
                "padding-id-differs", f"the model's `pad_token_id` is {pad} and the tokenizer's {theirs}",
                "the answer is read off a padding token", "set `model.config.pad_token_id = tokenizer.pad_token_id`",
            )  # fmt: skip
    if _left_padded(subject.batch) and _absolute(subject):
        yield warning(
            "padding-side", "rows are padded at the left and no `position_ids` are given",
            "a text begins at another position in every batch, which learnt positions notice",
            'set `tokenizer.padding_side = "right"` for training',
        )  # fmt: skip


def _pools_last(subject: Subject) -> bool:
    """Whether the model is a decoder with one answer a row: the base looks back only."""
    one = bool(subject.train) and not any(r.by_position and len(r.labels) == len(r.ids) for r in subject.train)
    return one and "ForSequenceClassification" in type(subject.task_model).__name__ and _looks_back(subject)


def _looks_back(subject: Subject) -> bool:
    """Whether attention is causal by the model's own modules."""
    if getattr(subject.config, "is_encoder_decoder", False):
        return False
    causal = [m.is_causal for m in subject.task_model.modules() if isinstance(getattr(m, "is_causal", None), bool)]
    buffers = any(n.endswith("attn.bias") for n, _ in subject.task_model.named_buffers())
    return buffers or (bool(causal) and all(causal))


def _left_padded(batch: Any) -> bool:
    mask = batch.get("attention_mask") if batch is not None else None
    return mask is not None and mask.ndim == 2 and "position_ids" not in batch and bool((mask[:, 0] == 0).any())


def _absolute(subject: Subject) -> bool:
    """Whether positions are learnt: an embedding table, other than the words', as long as the context."""
    from torch import nn

    longest = getattr(subject.config, "max_position_embeddings", None)
    words = subject.task_model.get_input_embeddings() if hasattr(subject.task_model, "get_input_embeddings") else None
    tables = (m for m in subject.task_model.modules() if isinstance(m, nn.Embedding) and m is not words)
    return longest is not None and any(longest <= m.num_embeddings <= longest + 2 for m in tables)


CHECK = Check(
    slug="padding",
    title="Pad id and padding side of decoder models.",
    codes=("padding-id-missing", "padding-id-differs", "padding-side"),
    look=_look,
)
