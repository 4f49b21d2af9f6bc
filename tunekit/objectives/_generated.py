"""Sequence-level distillation: what a teacher writes, as the rows that a student learns from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.data.labels import IGNORE
from tunekit.errors import UnsupportedError
from tunekit.finding import error
from tunekit.objectives._live import unwrapped
from tunekit.objectives._teacher import words_of

if TYPE_CHECKING:
    from torch import nn


def prompt_of(row: Mapping[str, Sequence[int]]) -> list[int]:
    """The tokens before the last supervised stretch of a decoder's row: what the teacher is asked.

    Example:
        >>> prompt_of({"input_ids": [7, 8, 9, 2], "labels": [-100, -100, 9, 2]})
        [7, 8]
    """
    labels = list(row["labels"])
    end = max((i for i, t in enumerate(labels) if t != IGNORE), default=-1)
    start = end
    while start > 0 and labels[start - 1] != IGNORE:
        start -= 1
    return list(row["input_ids"])[: max(start, 0)]


def written(
    teacher: nn.Module, rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_new_tokens: int, num_beams: int, vocabulary: int
) -> dict[str, list[list[int]]]:  # fmt: skip
    """Rows in which the teacher's words stand in place of the labels (Kim and Rush 2016).

    Args:
        teacher: A causal or an encoder-decoder model.
        rows: Encoded rows; a decoder is asked what stands before the last supervised stretch.
        tokenizer: For the padding and the end.
        max_new_tokens: Most tokens that it may write.
        num_beams: Beams of its search; 1 is greedy.
        vocabulary: Words that teacher and student share; what its own is padded with beyond them it may not write.

    Raises:
        UnsupportedError: `distillation-no-prompt`, where a decoder's row has nothing before its supervised tokens.
    """
    import torch

    seq2seq = bool(unwrapped(teacher).config.is_encoder_decoder)
    asked = [list(row["input_ids"]) if seq2seq else prompt_of(row) for row in rows]
    if not all(asked):
        raise UnsupportedError(
            error("distillation-no-prompt", "`targets: teacher` with rows of plain text", "there is no question that the teacher could answer", "give `prompt` and `completion`, or `messages`")
        )  # fmt: skip
    pad, width = int(tokenizer.pad_token_id), max(map(len, asked))
    fill = [[pad] * (width - len(a)) for a in asked]
    ids = torch.tensor([a + f if seq2seq else f + a for a, f in zip(asked, fill, strict=True)])
    mask = torch.tensor([[1] * len(a) + [0] * len(f) if seq2seq else [0] * len(f) + [1] * len(a) for a, f in zip(asked, fill, strict=True)])  # fmt: skip
    device = next(teacher.parameters()).device
    config = _settings(teacher, tokenizer, max_new_tokens, num_beams)
    config.suppress_tokens = list(range(min(vocabulary, len(tokenizer)), words_of(teacher))) or None
    live: Any = teacher
    made = live.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config)
    answers = [_until_end(a, config.eos_token_id) for a in made[:, 1 if seq2seq else width :].tolist()]
    if seq2seq:
        return {"input_ids": asked, "attention_mask": [[1] * len(a) for a in asked], "labels": answers}
    whole = [a + b for a, b in zip(asked, answers, strict=True)]
    labels = [[IGNORE] * len(a) + b for a, b in zip(asked, answers, strict=True)]
    return {"input_ids": whole, "attention_mask": [[1] * len(w) for w in whole], "labels": labels}


def _settings(teacher: nn.Module, tokenizer: Any, max_new_tokens: int, num_beams: int) -> Any:
    """The teacher's own settings, but always its likeliest words: nothing is drawn."""
    config = copy.deepcopy(unwrapped(teacher).generation_config)
    end = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    config.update(
        do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=max_new_tokens, max_length=None, min_length=0,
        num_beams=num_beams, pad_token_id=tokenizer.pad_token_id, eos_token_id=end,
    )  # fmt: skip
    return config


def _until_end(tokens: list[int], end: int | list[int] | None) -> list[int]:
    """Up to the first end-of-sequence token, with it."""
    ends = {end} if isinstance(end, int) else set(end or ())
    first = next((i for i, t in enumerate(tokens) if t in ends), len(tokens) - 1)
    return tokens[: first + 1]
