"""The loss against a teacher's cached answers with its gradient by hand: one pass of exponentials over the vocabulary."""

from __future__ import annotations

from typing import Any

_made: list[Any] = []


def cached_sum(
    logits: Any, ids: Any, logs: Any, tail: Any, targets: Any, vocabulary: int, temperature: float, hard_weight: float
) -> Any:
    """The sum of `hard_weight * cross_entropy + (1 - hard_weight) * temperature**2 * KL(teacher || student)`.

    The divergence is that of `top_divergence`. Autograd would keep four copies of the logits and take as many exponentials;
    what the gradient needs is one distribution: `student - teacher` at the kept words, and for all others the share
    `student's rest - teacher's rest`, divided as the student divides it.

    Args:
        logits: (positions, words) of the student, in 32 bits at least.
        ids: (positions, k), with k below `vocabulary`; different in each row.
        logs: (positions, k) log-probabilities at the temperature.
        tail: (positions,) logarithm of the share of all other words.
        targets: (positions,), -100 where nothing is learnt.
        vocabulary: How many words the teacher was asked for: the first ones.
        temperature: The one that the teacher's were taken at.
        hard_weight: The labels' share.

    Example:
        >>> import torch
        >>> logits = torch.randn(2, 9, requires_grad=True)
        >>> teacher = torch.randn(2, 9).log_softmax(-1)
        >>> logs, ids = teacher.topk(3)
        >>> tail = (1 - logs.exp().sum(-1)).log()
        >>> cached_sum(logits, ids, logs, tail, torch.tensor([4, 8]), 9, 1.0, 0.5).backward()
        >>> bool((logits.grad.sum(-1).abs() < 1e-5).all())
        True
    """
    return _function().apply(logits, ids, logs, tail, targets, vocabulary, temperature, hard_weight)


def _function() -> Any:
    """The autograd function; torch is imported when it is first needed."""
    if _made:
        return _made[0]
    import torch

    class CachedSum(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Any, *rest: Any) -> Any:
            total, gradient = _sum_and_gradient(logits, *rest)
            # As a saved tensor, so that a checkpoint around this keeps nothing of it.
            ctx.save_for_backward(gradient)
            return total

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, upstream: Any) -> Any:
            (gradient,) = ctx.saved_tensors
            return gradient * upstream, *[None] * 7

    _made.append(CachedSum)
    return CachedSum


def _sum_and_gradient(
    logits: Any, ids: Any, logs: Any, tail: Any, targets: Any, vocabulary: int, temperature: float, hard_weight: float
) -> tuple[Any, Any]:
    import torch

    kept = targets.ne(-100)
    known = targets.where(kept, 0)[:, None]
    logs, tail = logs.to(logits.dtype), tail.to(logits.dtype)
    soft_scale, hard_scale = (1 - hard_weight) * kept.to(logits.dtype), hard_weight * kept.to(logits.dtype)
    asked = logits[:, :vocabulary]
    rest = asked.clone() if temperature == 1 else asked / temperature
    top = rest.gather(-1, ids)
    rest.scatter_(-1, ids, float("-inf"))
    largest = rest.amax(-1, keepdim=True)
    share = rest.sub_(largest).exp_().sum(-1)
    log_rest = largest[:, 0] + share.log()
    total = torch.logaddexp(log_rest, top.logsumexp(-1))
    mine, mine_rest, theirs, theirs_rest = top - total[:, None], log_rest - total, logs.exp(), tail.exp()
    soft = (theirs * (logs - mine)).sum(-1) + theirs_rest * (tail - mine_rest)
    loss = (soft_scale * soft).sum() * temperature**2

    one = temperature == 1 and vocabulary == logits.shape[-1]
    # The student's own part of the gradient belongs to the labels' loss too where both are of one distribution.
    own = soft_scale * temperature
    # Rounded to 16 bits the teacher's shares do not add up to one.
    mass = own * (theirs.sum(-1) + theirs_rest)
    both = mass + hard_scale if one else mass
    gradient = rest.mul_(((both * mine_rest.exp() - own * theirs_rest) / share)[:, None])
    gradient.scatter_(-1, ids, both[:, None] * mine.exp() - own[:, None] * theirs)
    if one:
        loss = loss + (hard_scale * (total - logits.gather(-1, known)[:, 0])).sum()
    elif hard_weight:
        said = logits.log_softmax(-1)
        loss = loss - (hard_scale * said.gather(-1, known)[:, 0]).sum()
        whole = said.exp_().mul_(hard_scale[:, None])
        whole[:, :vocabulary] += gradient
        gradient = whole
    elif vocabulary < logits.shape[-1]:
        gradient = torch.nn.functional.pad(gradient, (0, logits.shape[-1] - vocabulary))
    if hard_weight:
        gradient.scatter_add_(-1, known, -hard_scale[:, None])
    return loss, gradient
