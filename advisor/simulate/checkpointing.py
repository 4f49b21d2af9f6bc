"""Activation checkpointing turned on and off, and the precision of a step, which what is recomputed needs too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tunekit.advisor.simulate.kernels import Attention

if TYPE_CHECKING:
    from tunekit.advisor.simulate.loop import Step


def enable_checkpointing(model: nn.Module, step: Step | None = None) -> None:
    """Turns activation checkpointing on, in the form that needs no gradient at a block's input.

    Args:
        model: The model with the method applied.
        step: For weightless tensors: the recomputation runs inside the backward pass, where function modes that were
            entered outside are not in force, so that it has to enter them itself.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    kwargs: dict[str, Any] = {"use_reentrant": False}
    _leave_inputs(inner)
    if step is not None:
        kwargs["context_fn"] = lambda: (contextlib.nullcontext(), _recomputation(step))
    if hasattr(inner, "activation_checkpointing_enable"):
        inner.activation_checkpointing_enable(kwargs)
    else:
        inner.gradient_checkpointing_enable(kwargs)


def disable_checkpointing(model: nn.Module) -> None:
    """Turns activation checkpointing off where an earlier step turned it on."""
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not any(getattr(m, "gradient_checkpointing", False) for m in inner.modules()):
        return
    if hasattr(inner, "activation_checkpointing_disable"):
        inner.activation_checkpointing_disable()
    else:
        inner.gradient_checkpointing_disable()
    _leave_inputs(inner)


def _leave_inputs(inner: Any) -> None:
    """Takes back that the embeddings' output wants a gradient, which transformers asks for anew at each time and leaves."""
    if hasattr(inner, "disable_input_require_grads"):
        inner.disable_input_require_grads()


@contextlib.contextmanager
def _recomputation(step: Step) -> Iterator[None]:
    with Attention(step.device), autocast_of(step):
        yield


def autocast_of(step: Step, device: str = "meta") -> contextlib.AbstractContextManager[Any]:
    """The precision that a step computes in."""
    from tunekit.advisor.simulate.autocast import Autocast

    if not step.mixed_precision:
        return contextlib.nullcontext()
    if device != "meta":
        return torch.autocast(device, dtype=torch.bfloat16 if step.mixed_precision == "bf16" else torch.float16)
    return Autocast(step.mixed_precision, step.device)
