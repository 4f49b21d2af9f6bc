"""Snapshot: what a model was before a method touched it, and the way back; Prepared: what it is now."""

from __future__ import annotations

import copy as copying
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.structure import unwrapped
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tunekit.contracts import Method

_RECORD = "_tunekit"
"""The instance attribute that holds a model's Prepared."""


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """One object's instance attributes; the containers among them with their contents."""

    target: Any
    cls: type
    attributes: dict[str, Any]
    contents: tuple[tuple[Any, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Snapshot:
    """The shape of a module tree and copies of the named tensors, enough to put everything back in place.

    Kept are, for every module, its children, parameters, buffers, hooks, flags and other attributes; the
    configurations; which parameters want gradients; the values of all buffers and of the parameters named in `copy`.
    The tensors themselves are the model's own (nothing is copied that is not named).

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        >>> before = Snapshot.take(model, copy=["0.weight"])
        >>> model[0] = torch.nn.Sequential(model[0], torch.nn.ReLU())
        >>> model[0][0].weight.data.zero_().sum().item()
        0.0
        >>> model = before.restore()
        >>> model[0].weight.abs().sum().item() > 0
        True
    """

    model: nn.Module
    modules: tuple[_Kept, ...]
    configs: tuple[_Kept, ...]
    wants_gradient: tuple[tuple[nn.Parameter, bool], ...]
    values: tuple[tuple[nn.Parameter, torch.Tensor], ...]
    buffers: tuple[tuple[nn.Module, str, torch.Tensor], ...]

    @staticmethod
    def take(model: nn.Module, copy: Iterable[str] = ()) -> Snapshot:
        """Remembers `model`.

        Args:
            model: Any module; transformers' configurations on it are remembered too.
            copy: Names of the parameters whose values will change; they are copied to the CPU.
        """
        named = dict(model.named_parameters(remove_duplicate=False))
        distinct = {id(named[name]): named[name] for name in copy}
        return Snapshot(
            model=model,
            modules=tuple(_keep(m) for m in model.modules()),
            configs=tuple(_keep(c, deep=True) for c in _configs(model)),
            wants_gradient=tuple((p, p.requires_grad) for p in model.parameters()),
            values=tuple((p, _copy(p)) for p in distinct.values()),
            buffers=tuple(
                (m, name, b.detach().clone())
                for m in model.modules()
                for name, b in m._buffers.items()
                if b is not None
            ),
        )

    def restore(self) -> nn.Module:
        """Puts everything back and returns the model: same module objects, same values, nothing left over.

        Parameters stay on the device they are on now; buffers follow them. Gradients are dropped.
        """
        now = {id(m): dict(m._buffers) for m, _, _ in self.buffers}
        for kept in (*self.modules, *self.configs):
            _put_back(kept)
        for module, name, value in self.buffers:
            current = now[id(module)].get(name)
            module._buffers[name] = _refill(module._buffers[name], value, current)
        for parameter, value in self.values:
            _refill_parameter(parameter, value)
        for parameter, wants in self.wants_gradient:
            parameter.grad = None
            parameter.requires_grad_(wants)
        return self.model


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prepared:
    """What was done to a model: the method, the task, and the way back."""

    method: Method | None
    """None for a PEFT adapter of a kind that tunekit has no method for."""
    task: Task
    snapshot: Snapshot
    """The base before the method touched it; `snapshot.model` is the base itself."""
    kept: bool = True
    """Whether the values that training overwrites were copied, so that `tunekit.unload` can put them back."""


def prepared(model: nn.Module) -> Prepared | None:
    """What `tunekit.prepare` or `tunekit.load` did to this model (in any wrapper); None for any other model.

    Example:
        >>> import torch
        >>> prepared(torch.nn.Linear(1, 1)) is None
        True
    """
    return vars(unwrapped(model)).get(_RECORD)


def record(model: nn.Module, what: Prepared) -> None:
    """Notes on the model what was done to it; `Snapshot.restore` of its base takes the note away again."""
    vars(model)[_RECORD] = what


def _copy(p: nn.Parameter) -> torch.Tensor:
    """The value on the CPU; a weightless tensor has none and stays as it is."""
    value = p.detach()
    return value.clone() if value.device.type in ("cpu", "meta") else value.cpu()


def _configs(model: nn.Module) -> list[Any]:
    """Every distinct configuration object on the modules, those inside others included."""
    from transformers import GenerationConfig, PretrainedConfig

    found: dict[int, Any] = {}
    waiting = [
        v for m in model.modules() for v in vars(m).values() if isinstance(v, PretrainedConfig | GenerationConfig)
    ]
    while waiting:
        config = waiting.pop()
        if id(config) not in found:
            found[id(config)] = config
            waiting += [v for v in vars(config).values() if isinstance(v, PretrainedConfig)]
    return list(found.values())


def _keep(target: Any, deep: bool = False) -> _Kept:
    """The attributes of a module (containers copied one level deep) or of a configuration (copied whole)."""
    attributes = dict(vars(target))
    if deep:
        shared = {id(c): c for c in attributes.values() if type(c).__module__.startswith("transformers")}
        return _Kept(target, type(target), copying.deepcopy(attributes, shared), ())
    containers = (v for v in attributes.values() if isinstance(v, dict | list | set))
    return _Kept(target, type(target), attributes, tuple((c, copying.copy(c)) for c in containers))


def _put_back(kept: _Kept) -> None:
    """In place, because hook handles and others hold on to the containers."""
    if type(kept.target) is not kept.cls:
        kept.target.__class__ = kept.cls
    vars(kept.target).clear()
    vars(kept.target).update(kept.attributes)
    for container, content in kept.contents:
        if isinstance(container, list):
            container[:] = content
        else:
            container.clear()
            container.update(content)


def _refill_parameter(parameter: nn.Parameter, value: torch.Tensor) -> None:
    """The remembered value, in the parameter's own memory where it still has the same shape and type."""
    import torch

    if parameter.shape == value.shape and parameter.dtype == value.dtype:
        with torch.no_grad():
            parameter.data.copy_(value)
    else:
        parameter.data = value.to(parameter.device)


def _refill(buffer: Any, value: torch.Tensor, current: Any) -> torch.Tensor:
    """The remembered buffer with its value, on the device that the module was moved to since."""
    import torch

    if current is not None and current.device != value.device:
        return value.to(current.device)
    with torch.no_grad():
        if buffer is not None and buffer.shape == value.shape and buffer.dtype == value.dtype:
            return buffer.copy_(value)
    return value.clone()
