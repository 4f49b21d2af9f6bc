"""The batch of one step: its shape, and the tensors a collator makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunekit.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The batch of one step. Lengths in tokens, padding included."""

    batch: int
    length: int
    target_length: int = 0
    """For seq2seq."""
    choices: int = 1
    """For multiple choice."""
    previous_length: int = 0
    """For PEFT's benchmark: the batch before, whose outputs are still alive."""
    padded: bool = True
    """Whether any row is shorter than the longest."""
    supervised: float = 1.0
    """Share of the positions that have a label, where the loss leaves out the others."""


def make_batch(task: Task, model: nn.Module, shape: Shape, device: str = "meta") -> dict[str, torch.Tensor]:
    """The tensors a collator makes for the task: without values on `meta`, zeros with an end token a row elsewhere."""
    rows: tuple[int, ...] = (shape.batch, shape.length)
    if task.name == "multiple-choice":
        rows = (shape.batch, shape.choices, shape.length)
    batch = {"input_ids": _whole(rows, device), "attention_mask": _mask(rows, shape.padded, device)}
    config: Any = getattr(model, "config", None)
    if device != "meta" and isinstance(getattr(config, "eos_token_id", None), int):
        batch["input_ids"][..., -2] = config.eos_token_id
    if task.name in ("causal-lm", "token-classification"):
        batch["labels"] = _whole(rows, device)
    elif task.name == "seq2seq":
        batch["labels"] = _whole((shape.batch, shape.target_length or shape.length), device)
    elif task.name == "question-answering":
        batch |= {"start_positions": _whole(rows[:1], device), "end_positions": _whole(rows[:1], device)}
    else:
        batch["labels"] = _class_labels(shape.batch, config, device)
    return batch


def _whole(shape: tuple[int, ...], device: str) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long, device=device)


def _mask(shape: tuple[int, ...], padded: bool, device: str) -> torch.Tensor:
    mask = torch.ones(shape, dtype=torch.long, device=device)
    if padded and device != "meta":
        mask[..., -1:] = 0
        mask[0] = 1
    return mask


def _class_labels(batch: int, config: Any, device: str) -> torch.Tensor:
    problem, classes = getattr(config, "problem_type", None), getattr(config, "num_labels", 1)
    if problem == "multi_label_classification":
        return torch.zeros((batch, classes), device=device)
    if problem == "regression":
        return torch.zeros((batch,) if classes == 1 else (batch, classes), device=device)
    return _whole((batch,), device)
