"""How far a student's distribution is from a teacher's: forward and reverse KL and the generalised JSD, with temperature."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Divergence = Literal["forward-kl", "reverse-kl", "jsd"]
HiddenLoss = Literal["mse", "cosine"]


def divergence(
    student: torch.Tensor, teacher: torch.Tensor, kind: Divergence, temperature: float = 1.0, beta: float = 0.5
) -> torch.Tensor:
    """The divergence of two sets of logits over the last dimension, times the square of the temperature.

    The square keeps the size of the gradient when the temperature rises (Hinton et al. 2015).

    Args:
        student: Logits; worked with in float32 at least.
        teacher: Logits of the same shape.
        kind: `forward-kl` is KL(teacher || student), `reverse-kl` the other way round, `jsd` the generalised one.
        temperature: Both are divided by it.
        beta: For `jsd`: the teacher's share of the mixture, between 0 and 1.

    Returns:
        One number for each row: the shape of `student` without the last dimension.

    Example:
        >>> import torch
        >>> even, sure = torch.tensor([0.0, 0.0]), torch.tensor([0.0, 100.0])
        >>> round(float(divergence(even, sure, "forward-kl")), 4)
        0.6931
    """
    s, t = (log_probabilities(logits, temperature) for logits in (student, teacher))
    return divergence_of_logs(s, t, kind, beta) * temperature**2


def divergence_of_logs(s: torch.Tensor, t: torch.Tensor, kind: Divergence, beta: float) -> torch.Tensor:
    """The divergence of a student's and a teacher's log-probabilities over the last dimension."""
    if kind == "forward-kl":
        return _kl(t, s)
    if kind == "reverse-kl":
        return _kl(s, t)
    import torch

    mixture = torch.logaddexp(t + math.log(beta), s + math.log1p(-beta))
    return beta * _kl(t, mixture) + (1 - beta) * _kl(s, mixture)


def log_probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities at a temperature, in float32 at least."""
    wide = logits if logits.element_size() >= 4 else logits.float()
    return (wide / temperature).log_softmax(-1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of log-probabilities."""
    return (p.exp() * (p - q)).sum(-1)
