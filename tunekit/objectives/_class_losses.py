"""Soft and hard losses of the tasks whose answers are few: classes, tags, choices, and the ends of a span."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tunekit.task import Task

if TYPE_CHECKING:
    import torch

Soft = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""The divergence of student's and teacher's logits over the last dimension."""


class Losses(NamedTuple):
    """One number for each item, and which items count."""

    soft: torch.Tensor
    hard: torch.Tensor
    kept: torch.Tensor


def class_losses(
    task: Task, config: Any, student: Any, teacher: Any, inputs: Mapping[str, torch.Tensor], soft: Soft
) -> Losses:
    """The losses of one batch.

    Args:
        task: Any but the two over a vocabulary.
        config: The student's.
        student: Its outputs.
        teacher: Its outputs.
        inputs: The batch, labels included.
        soft: The divergence.
    """
    if task.name == "question-answering":
        return _span_ends(student, teacher, inputs, soft)
    labels, s, t = inputs["labels"], student["logits"].float(), teacher["logits"].float().to(student["logits"].device)
    if task.name == "token-classification":
        length = labels.shape[1]  # soft prompts stand before the tokens
        s, t = s[:, -length:], t[:, -length:]
    elif task.name == "sequence-classification":
        problem = _problem(config, labels)
        if problem != "single_label_classification":
            return _many_numbers(problem, s, t, labels, soft)
    return Losses(soft(s, t), _cross_entropy(s, labels), labels.ne(-100))


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """For each label; 0 where it is -100."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="none").view(
        labels.shape
    )


def _problem(config: Any, labels: torch.Tensor) -> str:
    """The kind of labels, as transformers' heads tell it."""
    if getattr(config, "problem_type", None):
        return str(config.problem_type)
    if config.num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def _many_numbers(problem: str, s: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, soft: Soft) -> Losses:
    """Regression: squared differences from the label and from the teacher. Several labels: each is a yes or no."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    wanted = labels.view(s.shape).to(s.dtype)
    kept = torch.ones_like(s, dtype=torch.bool)
    if problem == "regression":
        return Losses((s - t) ** 2, (s - wanted) ** 2, kept)
    yes_or_no = [torch.stack([logits, torch.zeros_like(logits)], -1) for logits in (s, t)]
    return Losses(soft(*yes_or_no), binary_cross_entropy_with_logits(s, wanted, reduction="none"), kept)


def _span_ends(student: Any, teacher: Any, inputs: Mapping[str, torch.Tensor], soft: Soft) -> Losses:
    """The mean over start and end; a position of the padding is no possible answer of the teacher's or student's."""
    import torch
    from torch.nn.functional import cross_entropy

    length = inputs["input_ids"].shape[1]
    mask = inputs.get("attention_mask")
    softs, hards = [], []
    for end in ("start", "end"):
        s = student[f"{end}_logits"].float()[:, -length:]
        t = teacher[f"{end}_logits"].float().to(s.device)[:, -length:]
        where = (
            inputs[f"{end}_positions"].view(-1).clamp(0, length)
        )  # beyond the text: no label, as transformers has it
        hards.append(cross_entropy(s, where, ignore_index=length, reduction="none"))
        if mask is not None:
            s, t = (logits.masked_fill(mask == 0, -1e9) for logits in (s, t))
        softs.append(soft(s, t))
    return Losses(sum(softs) / 2, sum(hards) / 2, torch.ones_like(hards[0], dtype=torch.bool))
