"""Real words to start a prompt from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tunekit.errors import MissingError
from tunekit.finding import error
from tunekit.structure import base_model, task_model

if TYPE_CHECKING:
    import torch
    from torch import nn

PrefixInit = Literal["random", "activations"]


def tokens(model: nn.Module, length: int, text: str | None, tokenizer: str | None) -> torch.Tensor:
    """(length,) token ids: those of a text, repeated or cut to fit, or drawn from the vocabulary.

    Raises:
        MissingError: `init-text-tokenizer`.
    """
    import torch

    if text is None:
        return torch.randint(base_model(model).config.get_text_config().vocab_size, (length,))
    ids = _encode(tokenizer or getattr(task_model(model), "name_or_path", "") or "", text)
    return torch.tensor((ids * (length // len(ids) + 1))[:length])


def _encode(name: str, text: str) -> list[int]:
    from transformers import AutoTokenizer

    try:
        ids = AutoTokenizer.from_pretrained(name)(text, add_special_tokens=False)["input_ids"] if name else []
        why = "the text holds no token" if name else "the model came from no folder"
    except (OSError, ValueError) as e:
        ids, why = [], " ".join(str(e).split())[:160]
    if not ids:
        fix = "set `tokenizer_name_or_path` to the model's folder, or leave `init_text` out"
        raise MissingError(error("init-text-tokenizer", f"`init_text: {text!r}` with tokenizer {name!r}", why, fix))
    return list(ids)
