"""Collate: rows of different lengths to one padded batch, by transformers' own collators."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.data.labels import IGNORE
from tunekit.errors import UnsupportedError
from tunekit.finding import error
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

KEPT = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "labels", "start_positions", "end_positions")
"""Columns that go into a batch; others stay behind."""

_PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")
"""What vocabularies call a token that may stand for padding, the most fitting first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collator:
    """Pads a batch to its longest row; labels with -100. Can be pickled, so data loader workers can use it."""

    task: str
    """The task's name."""
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    """transformers' collator of the task."""

    left: bool
    """Whether padding goes to the left of rows."""
    multiple: int
    """Lengths are rounded up to a multiple of this number of tokens."""
    pad: int = 0
    """What stands for no token."""
    flat: bool = False
    """Whether rows with position ids are laid end to end in one row, for kernels that take examples of any length."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch, one tensor a column."""
        rows = [{k: v for k, v in row.items() if k in KEPT and v is not None} for row in features]
        if self.task == "seq2seq":
            return self._with_targets(rows)
        if self.task == "causal-lm" and "position_ids" in rows[0]:
            return self._told_apart(rows)
        if self.task == "multiple-choice" and "labels" not in rows[0]:
            batch = dict(self.collate([{**row, "labels": 0} for row in rows]))
            return {k: v for k, v in batch.items() if k != "labels"}
        batch = dict(self.collate(rows))
        if self.left and "start_positions" in batch:
            # transformers' collator moves the tokens and leaves the places that point at them.
            moved = batch["input_ids"].new_tensor([batch["input_ids"].shape[1] - len(row["input_ids"]) for row in rows])
            batch |= {name: batch[name] + moved for name in ("start_positions", "end_positions")}
        return batch

    def _told_apart(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows in which position ids say where an example begins; without an attention mask, which would overrule them.

        Padding is an example of its own, whose tokens nothing looks at and which teaches nothing.
        """
        import torch

        names = [name for name in ("input_ids", "labels", "position_ids") if name in rows[0]]
        if self.flat:
            return {n: torch.tensor([x for row in rows for x in row[n]])[None] for n in names}
        width = -(-max(len(row["input_ids"]) for row in rows) // self.multiple) * self.multiple

        def filled(name: str, row: dict[str, Any]) -> list[int]:
            missing = width - len(row["input_ids"])
            ends = {"input_ids": [self.pad] * missing, "labels": [IGNORE] * missing, "position_ids": [*range(missing)]}
            return [*row[name], *ends[name]]

        return {name: torch.tensor([filled(name, row) for row in rows]) for name in names}

    def _with_targets(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Sources on the tokenizer's side, targets always to the left of their padding.

        A decoder starts at the first place: transformers' collator would put padding there for a tokenizer that pads left.
        """
        targets = [row.pop("labels") for row in rows if "labels" in row]
        batch = dict(self.collate(rows))
        if targets:
            width = -(-max(map(len, targets)) // self.multiple) * self.multiple
            padded = [[*t, *[IGNORE] * (width - len(t))] for t in targets]
            batch["labels"] = batch["input_ids"].new_tensor(padded)
        return batch


def collator(
    task: Task, tokenizer: PreTrainedTokenizerBase, *, pad_to_multiple_of: int | None = None, flat: bool = False
) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """The function from rows of `encode` to a padded batch.

    Args:
        task: What the rows are for.
        tokenizer: Tells the padding token and the side; left as it is. One without a padding token is replaced by a
            copy that has one, see `ensure_pad_token`.
        pad_to_multiple_of: Round lengths up to a multiple, in tokens; tensor cores like 8.
        flat: Lay rows that carry position ids end to end in one row instead of padding them.

    Raises:
        UnsupportedError: `pad-token-missing`.
    """
    import transformers

    tokenizer = ensure_pad_token(tokenizer)
    settings = {"tokenizer": tokenizer, "pad_to_multiple_of": pad_to_multiple_of}
    build = {
        # The labels of a causal model stand beside the tokens, as tags do: padded with -100, on the tokenizer's side.
        "causal-lm": transformers.DataCollatorForTokenClassification,
        "token-classification": transformers.DataCollatorForTokenClassification,
        "multiple-choice": transformers.DataCollatorForMultipleChoice,
    }.get(task.name, transformers.DataCollatorWithPadding)
    left = tokenizer.padding_side == "left"
    return Collator(
        task=task.name, collate=build(**settings), left=left, multiple=pad_to_multiple_of or 1, pad=int(tokenizer.pad_token_id), flat=flat,
    )  # fmt: skip


def ensure_pad_token(
    tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer with a padding token: the one passed if it has one, otherwise a copy that does.

    The copy pads with what the model's configuration names, else with a token of the vocabulary that is meant for it,
    else with the end-of-sequence token. That one is safe here: labels are padded with -100, never found by the token.
    No token is added, so the embeddings keep their size.

    Args:
        tokenizer: Left as it is.
        model_config: The model's configuration, if at hand.

    Raises:
        UnsupportedError: `pad-token-missing`.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer
    named = getattr(model_config, "pad_token_id", None)
    vocabulary = tokenizer.get_vocab()
    token = tokenizer.convert_ids_to_tokens(named) if isinstance(named, int) and 0 <= named < len(tokenizer) else None
    token = token or next((t for t in _PAD_TOKENS if t in vocabulary), None) or tokenizer.eos_token
    if token is None:
        raise UnsupportedError(
            error("pad-token-missing", f"tokenizer `{type(tokenizer).__name__}`", "it has no padding token, and none that could stand for it", "set `tokenizer.pad_token` to a token of its vocabulary")
        )  # fmt: skip
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = token
    return padded
