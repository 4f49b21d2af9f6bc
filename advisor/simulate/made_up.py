"""Methods that look at weights when they start (at singular values, at where a mask is set): made-up ones for that moment.

The weights of the shallow copy are real then, but each is a window that slides over a few thousand random numbers, so that a
model of any size takes almost nothing; afterwards only shapes are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def with_values(model: nn.Module) -> None:
    """Gives the weightless tensors of a model values, in place; tied ones stay tied."""
    _exchange(model, _made_up)


def without_values(model: nn.Module, watched: Iterable[nn.Parameter]) -> frozenset[int]:
    """Takes the values of a model away again, in place.

    Args:
        model: Every tensor that it holds turns weightless.
        watched: Parameters of it.

    Returns:
        `id`s of what took the place of the watched ones.
    """
    made = _exchange(model, lambda t: t if _is_shape(t) else torch.empty(t.shape, dtype=t.dtype, device="meta"))
    return frozenset(id(made.get(id(p), p)) for p in watched)


def _is_shape(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds a few whole numbers, such as the size of a sparse matrix, that a step asks for."""
    return tensor.dim() == 1 and tensor.numel() <= 4 and tensor.dtype == torch.int64


def _made_up(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    if tensor.dim() == 0:
        return torch.full((), 0.02, dtype=tensor.dtype)
    numbers = (torch.randn(sum(tensor.shape) + 1) * 0.02).to(tensor.dtype)
    return numbers.as_strided(tuple(tensor.shape), (1,) * tensor.dim())


def _exchange(model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[int, Any]:
    """Changes every parameter, buffer and plainly held tensor once; returns the new ones by the `id` of the old."""
    made: dict[int, Any] = {}
    kept: list[torch.Tensor] = []

    def new(t: Any) -> Any:
        if isinstance(t, tuple | list):
            return type(t)(new(i) for i in t)
        if not isinstance(t, torch.Tensor):
            return t
        if id(t) not in made:
            kept.append(t)
            changed = change(t.detach())
            made[id(t)] = nn.Parameter(changed, t.requires_grad) if isinstance(t, nn.Parameter) else changed
        return made[id(t)]

    for module in model.modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for name, value in list(held.items()):
                if isinstance(value, torch.Tensor):
                    held[name] = new(value)
                elif type(value) is dict and not name.startswith("_"):
                    held[name] = {k: new(v) for k, v in value.items()}
    return made


class Shortcuts(TorchFunctionMode):
    """Answers decompositions and large products, which take seconds a weight, with numbers of the right shapes."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.randperm and args[0] > _LARGE:
            return torch.arange(args[0])
        large = any(isinstance(a, torch.Tensor) and a.numel() > _LARGE and not a.is_meta for a in args)
        if func not in _SLOW or not large:
            return func(*args, **kwargs)
        out = func(*[a.to("meta") if isinstance(a, torch.Tensor) else a for a in args], **kwargs)
        if isinstance(out, torch.Tensor):
            return _numbers(out)
        return type(out)([_numbers(o) for o in out])


@contextlib.contextmanager
def plain_starts() -> Iterator[None]:
    """LoRA's starts that need data or quantised copies of the weights start as LoRA does: they take as much memory."""
    from peft.tuners.lora.layer import LoraLayer

    data_driven = {
        n: getattr(LoraLayer, n) for n in ("corda_init", "loftq_init", "lora_ga_init") if hasattr(LoraLayer, n)
    }

    def plain(layer: Any, adapter_name: str, *args: Any) -> None:
        layer.reset_lora_parameters(adapter_name, True)

    for name in data_driven:
        setattr(LoraLayer, name, plain)
    try:
        yield
    finally:
        for name, own in data_driven.items():
            setattr(LoraLayer, name, own)


def at_once(model: nn.Module) -> None:
    """LoRA's variants that put off to the first forward pass what they cannot do without values: done now, or taken as done.

    KaSA cuts singular values off the base, which changes no shape; MonteCLoRA makes a sampler that learns.
    """
    from peft.tuners.lora import variants

    for module in model.modules():
        if deferred := getattr(module, "_lora_kasa_truncation_deferred", None):
            deferred.clear()
        for name, config in getattr(module, "_lora_monteclora_config", {}).items():
            samplers: Any = module.lora_monteclora_sampler
            if name not in samplers:
                samplers[name] = variants.MontecloraLinearVariant._create_sampler(module, name, config)


_LARGE = 2**16
_SLOW = {
    torch.linalg.svd, torch.svd, torch.linalg.qr, torch.linalg.eigh, torch.linalg.pinv, torch.linalg.solve, torch.linalg.inv,
    torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm, torch.Tensor.__rmatmul__,
}  # fmt: skip


def _numbers(like: torch.Tensor) -> torch.Tensor:
    return torch.rand(like.shape).to(like.dtype)
