"""Prompts as padded batches, with some tokens hidden for the masked-LM loss; and the same without values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

_HIDDEN_SHARE = 0.15
_COLUMNS = ("words", "said_in", "classes", "positions", "answers", "prior")


def collate_prompts(features: list[dict[str, Any]], collate: Any, hides: bool = False) -> dict[str, torch.Tensor]:
    """Rows of `prompt_rows` as a batch; every tensor has one entry a row.

    Args:
        features: The rows.
        collate: Pads sequences; on which side is seen from what it makes.
        hides: Whether to hide some tokens of every sequence, with torch's generator.
    """
    import torch

    flat = [ids for row in features for ids in row["input_ids"]]
    padded = collate([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in flat])
    rows, each = len(features), len(features[0]["input_ids"])
    batch = {name: torch.tensor([row[name] for row in features]) for name in _COLUMNS if row_has(features, name)}
    if "answers" not in batch:
        moved = padded["attention_mask"].argmax(-1).view(rows, each, 1)
        batch["positions"] = torch.where(batch["positions"] < 0, batch["positions"], batch["positions"] + moved)
    for name in ("input_ids", "attention_mask"):
        batch[name] = padded[name] if each == 1 else padded[name].view(rows, each, -1)
    if hides:
        batch |= hidden(batch)
    if "labels" in features[0]:
        batch["labels"] = torch.tensor([row["labels"] for row in features])
    return batch


def row_has(features: list[dict[str, Any]], name: str) -> bool:
    """Whether the rows have a column."""
    return features[0].get(name) is not None


def hidden(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the sequences in which 15 % of the tokens are hidden by the mask token, which the blank shows.

    The first and last token and the blanks stay: only words of the text are asked for.
    """
    import torch

    ids, mask = batch["input_ids"], batch["attention_mask"]
    length = ids.shape[-1]
    flat, seen = ids.reshape(-1, length), mask.reshape(-1, length).bool()
    blanks = batch["positions"].reshape(len(flat), -1)
    token = flat.gather(1, blanks[:, :1].clamp(min=0))
    free = seen & (flat != token)
    free &= seen.roll(1, -1) & seen.roll(-1, -1)
    free[:, 0] = free[:, -1] = False
    count = max(1, round(_HIDDEN_SHARE * length))
    order = torch.where(free, torch.rand(flat.shape), -1.0).topk(min(count, length), -1)
    share = (_HIDDEN_SHARE * free.sum(-1, keepdim=True)).round().clamp(min=1)
    chosen = (order.values >= 0) & (torch.arange(order.values.shape[-1]) < share)
    where = torch.where(chosen, order.indices, -1)
    wanted = torch.where(chosen, flat.gather(1, order.indices), -1)
    shown = flat.clone()
    shown.scatter_(1, order.indices, torch.where(chosen, token, flat.gather(1, order.indices)))
    rows = len(ids)
    return {
        "hidden_ids": shown.view(ids.shape),
        "hidden_positions": where.view(rows, -1, where.shape[-1]),
        "hidden_tokens": wanted.view(rows, -1, where.shape[-1]),
    }


def plain_batch(
    batch: Mapping[str, torch.Tensor], model: nn.Module, counts: tuple[int, int], longest: int, shown: int, hides: bool
) -> dict[str, torch.Tensor]:
    """A prompt batch of the shapes that a plain batch of texts would become.

    Args:
        batch: With `input_ids` and `attention_mask`, (rows, tokens).
        model: Tells whether a decoder answers apart.
        counts: Templates, and label words.
        longest: Tokens that the longest template adds.
        shown: Texts in one prompt, demonstrations included.
        hides: Whether tokens are hidden for the masked-LM loss.
    """
    import torch

    from tunekit.structure import task_model

    ids, (templates, words) = batch["input_ids"], counts
    config: Any = task_model(model).config
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 10**9
    # To a whole sixteen: how many words make how many tokens is not known here.
    rows, length = ids.shape[0], min(-(-(ids.shape[-1] + longest) * shown // 16) * 16, limit)

    def whole(*shape: int) -> torch.Tensor:
        return torch.zeros((rows, *shape), dtype=torch.long, device=ids.device)

    shape = (length,) if templates == 1 else (templates, length)
    made = {"input_ids": whole(*shape), "attention_mask": whole(*shape) + 1}
    if ids.device.type != "meta":
        made["attention_mask"][1:, ..., -1:] = batch["attention_mask"][1:, -1:].reshape(-1, *[1] * len(shape))
    made |= {
        "positions": whole(templates, 1),
        "words": whole(templates, words, 1),
        "said_in": whole(words),
        "classes": whole(words),
    }
    if getattr(config, "is_encoder_decoder", False):
        made["answers"] = whole(templates, 1)
    if hides:
        count = max(1, round(_HIDDEN_SHARE * length))
        made |= {"hidden_ids": whole(*shape), "hidden_positions": whole(templates, count), "hidden_tokens": whole(templates, count)}  # fmt: skip
    return {**made, "labels": whole()}
