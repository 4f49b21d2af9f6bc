"""Liger's fused linear and divergence, on GPUs where it is installed: the same sum, without logits in memory twice."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from tunekit.objectives._divergence import Divergence
from tunekit.objectives._vocabulary import Answers

if TYPE_CHECKING:
    import torch


def is_installed() -> bool:
    """Whether liger-kernel can be imported."""
    return importlib.util.find_spec("liger_kernel") is not None


def applies(student: Answers, teacher: Answers, targets: torch.Tensor) -> bool:
    """Whether the fused loss can stand in: a GPU, plain linear output layers of one size, the student's learning."""
    from torch import nn

    heads = (student.head, teacher.head)
    plain = all(type(h) is nn.Linear and h.weight.device == targets.device for h in heads)
    return (
        targets.is_cuda
        and is_installed()
        and plain
        and heads[0].weight.shape[0] == heads[1].weight.shape[0]
        and heads[0].weight.requires_grad
    )


def fused_sum(
    student: Answers, teacher: Answers, rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor], kind: Divergence,
    temperature: float, beta: float, hard_weight: float, at_once: int, compiled: bool = True,
) -> Any:  # fmt: skip
    """The sum over positions of the mixed loss; Liger gives the mean over supervised ones without temperature**2.

    Args:
        student: With its output layer.
        teacher: With its output layer.
        rows: (positions, width) states of both, and (positions,) targets.
        kind: Which divergence; Liger's generalised JSD is forward KL at 0 and reverse KL at 1 (liger-kernel 0.8.5).
        temperature: Of both.
        beta: For `jsd`.
        hard_weight: The share of the labels' own loss.
        at_once: Positions a chunk.
        compiled: Whether the chunks are compiled.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=hard_weight, weight_soft_loss=(1 - hard_weight) * temperature**2, temperature=temperature,
        beta={"forward-kl": 0.0, "reverse-kl": 1.0, "jsd": beta}[kind], compiled=compiled, chunk_size=at_once,
    )  # fmt: skip
    s, t, targets = rows
    mean = loss(s, student.head.weight, t, teacher.head.weight, targets, student.head.bias, teacher.head.bias)
    return mean * targets.ne(-100).sum()
