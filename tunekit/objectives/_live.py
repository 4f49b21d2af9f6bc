"""What an objective must know of a live model: the model under its wrappers, its task, and the inputs it takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunekit.contracts import ACTIVATIONS
from tunekit.errors import UnsupportedError
from tunekit.finding import error
from tunekit.structure import class_name
from tunekit.task import TASKS, Task

if TYPE_CHECKING:
    import torch
    from torch import nn

LABELS = ("labels", "start_positions", "end_positions")
"""The inputs that say what is right."""


def unwrapped(model: nn.Module) -> Any:
    """The transformers model under DDP's and PEFT's wrappers."""
    inner: Any = model
    while hasattr(inner, "module") or hasattr(inner, "get_base_model"):
        inner = inner.module if hasattr(inner, "module") else inner.get_base_model()
    return inner


def task_of(model: nn.Module) -> Task:
    """The task whose auto class builds models of this class.

    Raises:
        UnsupportedError: `objective-model`.
    """
    import transformers

    name = class_name(unwrapped(model))
    for task in TASKS:
        classes = getattr(transformers, task.auto_class)._model_mapping._model_mapping.values()
        if any(name == c or name in c for c in classes if isinstance(c, str | tuple)):
            return task
    raise UnsupportedError(
        error("objective-model", f"a model of class `{name}`", "no auto class of the six tasks builds it", "use a model of a task's auto class")
    )  # fmt: skip


def questions(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs without labels that the model's forward takes, so that models with other inputs share a batch."""
    known = inspect.signature(type(unwrapped(model)).forward).parameters  # the instance's own may be wrapped
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values()) and "token_type_ids" in known
    return {k: v for k, v in inputs.items() if k not in LABELS and (takes_any or k in known or k == ACTIVATIONS)}


def on_meta(model: nn.Module) -> bool:
    """Whether the model is weightless."""
    return next((p.is_meta for p in model.parameters()), False)
