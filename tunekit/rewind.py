"""A Trainer put back exactly as it was: weights, gradients, optimizer, random numbers, modes, hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

_PLAIN = (int, float, str, bool, dict, list, type(None))
_REGISTRIES = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


@contextmanager
def rewound(trainer: Any) -> Iterator[dict[int, torch.Tensor]]:
    """While the block runs anything may be trained; afterwards it never happened.

    Gives copies of all parameters and buffers by the id of the tensor, in the host's memory where the model lies on
    another device. What the model's modules hold in containers of their own, and what code outside the model keeps, is
    not known here and stays as the block leaves it.
    """
    import torch

    model, optimizer = trainer.model, trainer.optimizer
    tensors = [*model.parameters(), *model.buffers()]
    kept = {id(t): t.detach().to("cpu", copy=True) for t in tensors}
    gradients = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    modules, moments, plain, configs = _modules(model), _moments(optimizer), _plain(trainer), _configs(model)
    scheduler = trainer.lr_scheduler
    for p in model.parameters():
        p.grad = None
    try:
        yield kept
    finally:
        _put_back(modules)
        with torch.no_grad():
            for t in tensors:
                t.copy_(kept[id(t)])
        for p, gradient, wants in gradients:
            p.requires_grad_(wants)
            p.grad = gradient
        trainer.optimizer, trainer.lr_scheduler = optimizer, scheduler
        _put_moments_back(optimizer, moments)
        vars(trainer).update(plain)
        for config, settings in configs:
            vars(config).clear()
            vars(config).update(settings)


def _configs(model: nn.Module) -> list[tuple[Any, dict[str, Any]]]:
    """Configurations, which saving writes into."""
    held = [getattr(m, name, None) for m in model.modules() for name in ("config", "generation_config")]
    by_id = {id(c): c for c in held if hasattr(c, "to_dict") and hasattr(c, "__dict__")}
    return [(c, dict(vars(c))) for c in by_id.values()]


def _modules(model: nn.Module) -> list[tuple[nn.Module, dict[str, Any], dict[str, dict]]]:
    """Each module's own attributes: modes, flags, replaced methods, and the registries of hooks, parameters and buffers."""
    found = []
    for module in model.modules():
        own = dict(vars(module))
        inner = {k: v for k, v in own.items() if isinstance(v, dict) and (k.endswith(_REGISTRIES) or k in ("_parameters", "_buffers", "_modules"))}  # fmt: skip
        found.append((module, own, {k: copy.copy(v) for k, v in inner.items()}))
    return found


def _put_back(modules: list[tuple[nn.Module, dict[str, Any], dict[str, dict]]]) -> None:
    for module, own, inner in modules:
        for name, held in inner.items():
            own[name].clear()
            own[name].update(held)
        vars(module).clear()
        vars(module).update(own)


def _moments(optimizer: Any) -> Any:
    """What an optimizer holds: its state by parameter, and the settings of its groups."""
    if optimizer is None:
        return None
    inner = getattr(optimizer, "optimizer", optimizer)
    state = {p: {k: v.clone() if hasattr(v, "clone") else copy.copy(v) for k, v in s.items()} for p, s in inner.state.items()}  # fmt: skip
    return inner, state, [{k: v for k, v in g.items() if k != "params"} for g in inner.param_groups]


def _put_moments_back(optimizer: Any, moments: Any) -> None:
    if optimizer is None:
        return
    inner, state, groups = moments
    inner.state.clear()
    inner.state.update(state)
    for group, settings in zip(inner.param_groups, groups, strict=True):
        group.update(settings)


def _plain(trainer: Any) -> dict[str, Any]:
    """The Trainer's own figures and lists: TRL's metrics, counts of tokens."""
    found = {}
    for name, value in vars(trainer).items():
        if isinstance(value, _PLAIN):
            try:
                found[name] = copy.deepcopy(value) if isinstance(value, dict | list) else value
            except Exception:
                continue  # a list of live objects, such as open files; nothing of a training step lies there
    return found
