"""Cross-entropy over a vocabulary without its logits in memory, and without the positions that teach nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tunekit.contracts import SUPERVISED, repeated
from tunekit.objectives._live import questions, unwrapped
from tunekit.objectives._vocabulary import Answers, answers, decoder_targets, with_decoder_inputs

if TYPE_CHECKING:
    import torch
    from torch import nn

CHUNK_ELEMENTS = 2**24
"""Logits that exist at the same time: 64 MiB in 32 bits, and the output layer still multiplies a hundred positions at once."""
_FEWEST = 16


def chunked_cross_entropy(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """The sum of the loss of a causal or seq2seq language model, the number of its targets, and its outputs without logits.

    The output layer is applied to supervised positions only, a chunk at a time, and each chunk's gradient is taken before
    the next one's logits are made: nothing is computed twice, and the peak does not grow with positions times vocabulary.
    Where the layer's weights lie in shards (ZeRO-3, FSDP), or something unknown is done to the logits after it, it is
    applied to all supervised positions at once, inside the model's own forward.

    References:
        P.-L. Hsu et al., Liger Kernel, 2024 (the gradient of a chunk in the forward pass); E. Wijmans et al., Cut Your
        Losses in Large-Vocabulary Language Models, 2024.
    """
    labels = inputs["labels"]
    targets = decoder_targets(model, labels)
    flat = targets.reshape(-1)
    kept = None if flat.is_meta else _supervised(flat)
    asked = with_decoder_inputs(model, questions(model, inputs), labels)
    said = answers(model, asked, only=kept, positions=targets.shape[1])
    states = said.states if said.head is None and kept is not None else said.last(targets.shape[1])
    if kept is not None:
        flat = flat[kept]
        states = states if said.head is None else states[kept.to(states.device)]
    total = _summed(said, states, flat.to(states.device))
    outputs = said.outputs
    if "logits" in outputs:
        outputs["logits"] = None
    return total, targets.ne(-100).sum(), outputs


def _supervised(flat: torch.Tensor) -> torch.Tensor:
    """Places of the supervised positions; the first one where there is none, so that the loss has a gradient."""
    kept = flat.ne(-100).nonzero().squeeze(-1)
    return kept if len(kept) else kept.new_zeros(1)


def _summed(said: Answers, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if said.head is None:
        return _cross_entropy(states, targets)
    words = said.words
    size = max(_FEWEST, CHUNK_ELEMENTS // words)
    learnt = [p for p in said.head.parameters() if p.requires_grad]
    return fused_sum(lambda s, t: _cross_entropy(said.logits(s), t), states, targets, learnt, size)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import cross_entropy

    wide = logits if logits.element_size() >= 4 else logits.float()
    return cross_entropy(wide.reshape(len(targets), -1), targets, ignore_index=-100, reduction="sum")


def fused_sum(
    piece: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], states: torch.Tensor, targets: torch.Tensor, parameters: list[Any], size: int
) -> torch.Tensor:  # fmt: skip
    """The sum of `piece` over chunks of positions, whose gradient is worked out chunk by chunk on the way.

    Args:
        piece: The loss of some positions, from their states and targets.
        states: (positions, width).
        targets: (positions,)
        parameters: Those that `piece` reads and that learn.
        size: Positions of a chunk.

    Example:
        >>> import torch
        >>> head = torch.nn.Linear(4, 9)
        >>> states, targets = torch.randn(7, 4, requires_grad=True), torch.arange(7)
        >>> total = fused_sum(lambda s, t: torch.nn.functional.cross_entropy(head(s), t, reduction="sum"), states, targets,
        ...                   list(head.parameters()), size=3)
        >>> total.backward()
        >>> head.weight.grad.shape, states.grad.shape
        (torch.Size([9, 4]), torch.Size([7, 4]))
    """
    return _function().apply(piece, states, targets, size, *parameters)


_made: list[Any] = []


def _function() -> Any:
    """The autograd function; torch is imported when it is first needed."""
    if _made:
        return _made[0]
    import torch

    class FusedSum(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, piece: Any, states: torch.Tensor, targets: torch.Tensor, size: int, *parameters: Any
        ) -> Any:
            wanted = [ctx.needs_input_grad[1], *ctx.needs_input_grad[4:]]
            total, ctx.gradients = _forward(piece, states, targets, size, parameters, any(wanted))
            return total

        @staticmethod
        def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
            gradients, ctx.gradients = ctx.gradients, None
            if gradients is None:
                raise RuntimeError("the gradient of a chunked loss can be taken once")
            like = [None if g is None else g.mul_(upstream[0]) for g in gradients]
            return None, like[0], None, None, *like[1:]

    _made.append(FusedSum)
    return FusedSum


def _forward(
    piece: Any, states: torch.Tensor, targets: torch.Tensor, size: int, parameters: tuple[Any, ...], learns: bool
) -> tuple[torch.Tensor, list[Any] | None]:
    """The sum, and the gradients of it to the states and to each parameter."""
    import torch

    total = torch.zeros(
        (), dtype=torch.float64 if states.dtype == torch.float64 else torch.float32, device=states.device
    )
    if not learns:
        for start in range(0, len(states), size):
            total = total + piece(states[start : start + size], targets[start : start + size])
        return total, None
    into = torch.empty_like(states)
    sums: list[Any] = [None] * len(parameters)
    # Weightless tensors hold nothing to add up: one chunk stands for all, and is counted as often as there are chunks.
    once = states.is_meta and len(states) > size
    for start in range(0, size if once else len(states), size):
        part = states[start : start + size].detach().requires_grad_()
        with torch.enable_grad(), repeated(int(len(states) * SUPERVISED.get()), size) if once else repeated(1, 1):
            made = piece(part, targets[start : start + size])
            found = torch.autograd.grad(made, [part, *parameters], allow_unused=True)
        into[start : start + size] = found[0]
        sums = [_added(have, new, p) for have, new, p in zip(sums, found[1:], parameters, strict=True)]
        total = total + made.detach()
        del made, found
    return total, [into, *(None if s is None else s.to(p.dtype) for s, p in zip(sums, parameters, strict=True))]


def _added(have: Any, new: Any, parameter: Any) -> Any:
    """The sum over chunks, in 32 bits where the parameter has fewer: a hundred small additions would be rounded away."""
    if new is None:
        return have
    if have is None:
        return new if new.element_size() >= 4 else new.float()
    return have.add_(new)


def with_router_loss(model: nn.Module, outputs: Any, mean: torch.Tensor) -> torch.Tensor:
    """The mean loss and what a mixture of experts adds to it where it is asked for its routers' balance."""
    aux = outputs.get("aux_loss") if isinstance(outputs, Mapping) else None
    if aux is None:
        return mean
    inner = unwrapped(model)
    weight = getattr(inner, "router_aux_loss_coef", None) or getattr(inner.config, "router_aux_loss_coef", 0.0)
    return mean + weight * aux.to(mean.device)
