"""The frozen part of a model below the first layer that learns: where it ends, and how its answers go in from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.contracts import ACTIVATIONS
from tunekit.errors import UnsupportedError
from tunekit.finding import Finding, error
from tunekit.snapshot import prepared
from tunekit.structure import blocks, head_modules, norms_beside, task_model
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

_WITH_POOLER = Task.named("sequence-classification")
"""The task whose head is everything above the layers, whatever the model was made for."""
_FIX = "set `frozen_activations: recomputed`"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrozenPart:
    """The layers of a model's one stack that lie below everything that learns."""

    stack: str
    """Dotted name of the stack in the task model."""
    layers: tuple[nn.Module, ...]
    """The frozen ones, from the bottom up."""
    above: int
    """How many layers of the stack lie above them."""


def frozen_part(model: nn.Module) -> FrozenPart:
    """What never changes below the first layer that will ever learn.

    Args:
        model: What `tunekit.prepare` returned.

    Raises:
        UnsupportedError: `activations-stacks`, for an encoder with a decoder; `activations-none-frozen`.

    Example:
        >>> import tunekit
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, vocab_size=9)
        >>> top = tunekit.methods.Partial(last_layers=1)
        >>> model = tunekit.prepare(BertForSequenceClassification(config), top, "sequence-classification")
        >>> len(frozen_part(model).layers)
        2
    """
    stacks = blocks(model)
    if len(stacks) != 1:
        seen = f"`frozen_activations: cached` with {type(task_model(model)).__name__}"
        why = f"it has {len(stacks)} stacks of layers, and what goes from one to the other is not kept"
        raise UnsupportedError(error("activations-stacks", seen, why, _FIX))
    name, layers = stacks[0]
    frozen = _lowest_learning(model, name, layers)
    if frozen == 0:
        raise UnsupportedError(_none_frozen(model))
    return FrozenPart(stack=name, layers=tuple(layers[:frozen]), above=len(layers) - frozen)


def _lowest_learning(model: nn.Module, stack: str, layers: nn.ModuleList) -> int:
    """The number of the lowest layer that learns; 0 also where something below the layers does."""
    what = prepared(model)
    learns = (
        what.method.trainable_names(model)
        if what is not None and what.method is not None
        else {name for name, p in model.named_parameters() if p.requires_grad}
    )
    learning = {id(p) for name, p in model.named_parameters() if name in learns or p.requires_grad}
    inside = {id(p): i for i, layer in enumerate(layers) for p in layer.parameters()}
    # What else learns inside the base stands at its input, as learnt prompts do.
    prefixes = tuple(f"{name}." for name in (*head_modules(model, _WITH_POOLER), *norms_beside(model, stack)))
    above = {id(p) for name, p in task_model(model).named_parameters() if name.startswith(prefixes)}
    return min((inside.get(p, 0) for p in learning - above), default=len(layers))


def _none_frozen(model: nn.Module) -> Finding:
    what = prepared(model)
    method = what.method.slug if what is not None and what.method is not None else "what learns"
    return error(
        "activations-none-frozen", f"`frozen_activations: cached` with {method}",
        "something learns in the first layer or below it, so that no layer says the same twice",
        f"{_FIX}, or let the last layers alone learn (`method: {{kind: partial, last_layers: 2}}`)",
    )  # fmt: skip


class Supply:
    """Forward hooks of a model, by which a batch that carries the frozen part's answers does without that part.

    A batch without them is computed as ever, so that the model stays what it was for everybody else. Nothing is left on
    the layers between two forward passes.

    Args:
        part: The frozen part.
        answers: How many things a layer answers with in a tuple that begins with the hidden states; 0: them alone.
    """

    def __init__(self, part: FrozenPart, answers: int) -> None:
        self.layers = part.layers
        self.answers = answers

    def attach(self, model: nn.Module) -> list[Any]:
        """Puts the hooks onto the module that is called with batches; returns their handles."""
        return [
            model.register_forward_pre_hook(self.before, with_kwargs=True),
            model.register_forward_hook(self.after, always_call=True),
        ]

    def before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Takes the answers out of the batch and puts them in the layers' place."""
        hidden = kwargs.pop(ACTIVATIONS, None)
        if hidden is None:
            return None
        answer = _Answer(hidden.flatten(0, -3), self.answers)
        for layer in self.layers:
            vars(layer)["forward"] = answer
        return args, kwargs

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Gives the layers their own forward back, also after an error."""
        for layer in self.layers:
            if isinstance(vars(layer).get("forward"), _Answer):
                del vars(layer)["forward"]


class _Answer:
    """The forward of a layer that need not be computed."""

    def __init__(self, hidden: torch.Tensor, answers: int) -> None:
        self.hidden = hidden
        self.answers = answers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.hidden, *[None] * (self.answers - 1)) if self.answers else self.hidden


class _Reached(Exception):
    """The frozen part has answered."""


def frozen_answer(model: nn.Module, part: FrozenPart, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """What the frozen part says of a batch, without dropout and gradients, and the length of its layers' tuples.

    Args:
        model: The model that is called with batches.
        part: Its frozen part.
        inputs: A batch; the layers above are not asked, so it needs no labels.
    """
    import torch

    found: list[Any] = []

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output)
        raise _Reached

    hook = part.layers[-1].register_forward_hook(stop)
    try:
        with still(model), torch.no_grad():
            model(**inputs)
    except _Reached:
        pass
    finally:
        hook.remove()
    if isinstance(found[0], tuple):
        return found[0][0].detach(), len(found[0])
    return found[0].detach(), 0


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards in the mode it was in."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode
