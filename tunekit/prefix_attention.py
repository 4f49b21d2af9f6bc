"""Attention functions that join a module's learnt prefix to its keys and values, registered with transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from tunekit.attention import Attention

if TYPE_CHECKING:
    import torch
    from torch import nn

CHILD = "deep_prompt"
"""Name of the prefix in its attention module: a module that returns (keys, values), each (heads, length, width)."""
KERNEL_PREFIX = "tunekit_prefix_"
"""In front of the name of the attention kernel that a model with prefixes goes on to use."""
_FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")


def route(model: nn.Module) -> None:
    """Makes a model attend through the function that joins prefixes, on top of the kernel that it uses now.

    transformers does not save this choice with a model: it is made again whenever prefixes are attached.
    """
    for config in _configs(model):
        kernel = config._attn_implementation or "eager"
        if not kernel.startswith(KERNEL_PREFIX):
            config._attn_implementation_internal = register(kernel)


def kernel_fault(model: nn.Module, sites: tuple[Attention, ...]) -> str | None:
    """The attention kernel that a model uses, where it cannot take a prefix; None where it can."""
    for at in sites:
        module = model.get_submodule(at.name)
        kernel = getattr(module, "config", model.config)._attn_implementation or "eager"
        if kernel == "eager" and _eager(module) is None:
            return "`eager` attention under a name of its own"
        if kernel in _FLASH and at.window:
            return f"`{kernel}` with a sliding window, which would cut the prefix off"
        if kernel not in ("eager", "sdpa", *_FLASH):
            return f"`{kernel}` attention"
    return None


def _configs(model: nn.Module) -> Iterator[Any]:
    """Every distinct configuration that an attention module of the model may look at."""
    held = (getattr(m, "config", None) for m in model.modules())
    yield from {id(c): c for c in held if hasattr(c, "_attn_implementation")}.values()


def register(kernel: str) -> str:
    """Registers the joining function over `kernel` with transformers, for attention and for masks; returns its name.

    A name that is not known among the mask functions too would get no mask at all: padding ignored, in silence.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = KERNEL_PREFIX + kernel
    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, partial(_attend, kernel))
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, partial(_mask, kernel))
    return name


def _mask(kernel: str, *args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The kernel's own mask, but never left out for a causal model.

    Without one, transformers' SDPA function takes longer keys for an empty static cache and slices the last real
    keys away. A bidirectional mask may be left out: everything is seen then, the prefix too.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    return ALL_MASK_ATTENTION_FUNCTIONS[kernel](*args, **{**kwargs, "allow_is_causal_skip": False})


def _attend(
    kernel: str,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention with the module's prefix in front of its keys and values; plain attention where it has none.

    The keys come here out of the cache, so the cache never holds the prefix; heads are repeated afterwards.
    """
    import torch

    prefix: Any = module._modules.get(CHILD)
    call = _function(kernel, module)
    if prefix is None:
        return call(module, query, key, value, attention_mask, **kwargs)
    prefix.was_read = True
    if prefix.listens:
        prefix.heard = (key, value)
        return call(module, query, key, value, attention_mask, **kwargs)
    if kernel not in _FLASH:
        attention_mask = _explicit(kernel, module, query, key, attention_mask, kwargs)
        kwargs["is_causal"] = False
    keys, values = (x.to(key).unsqueeze(0).expand(key.shape[0], -1, -1, -1) for x in prefix())
    length = keys.shape[2]
    if kwargs.get("position_bias") is not None:
        # T5 adds a bias for the distance; a prefix is at none.
        kwargs["position_bias"] = torch.nn.functional.pad(kwargs["position_bias"], (length, 0))
    mask = _seen_by_all(attention_mask, length)
    return call(module, query, torch.cat([keys, key], 2), torch.cat([values, value], 2), mask, **kwargs)


def _seen_by_all(mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """The mask with `length` columns more on the left that every query sees."""
    import torch

    if mask is None:
        return None
    seen = 0.0 if mask.is_floating_point() else 1
    return torch.cat([mask.new_full((*mask.shape[:-1], length), seen), mask], dim=-1)


def _explicit(
    kernel: str,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> torch.Tensor | None:
    """A mask for a causal call that came without one: the last query sees every key (a lower-right triangle)."""
    import torch

    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    queries, keys = query.shape[2], key.shape[2]
    if mask is not None or not causal or queries == 1:
        return mask
    seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)[None, None]
    if kernel != "eager":
        return seen
    return torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)


def _function(kernel: str, module: nn.Module) -> Callable[..., Any]:
    """The kernel's attention function; `eager` is each model file's own."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if kernel == "eager":
        eager = _eager(module)
        assert eager is not None, "checked when the prefix was attached"
        return eager
    return partial(_flash, kernel) if kernel in _FLASH else ALL_ATTENTION_FUNCTIONS[kernel]


def _eager(module: nn.Module) -> Callable[..., Any] | None:
    files = (sys.modules.get(cls.__module__) for cls in type(module).__mro__)
    return next((vars(f)["eager_attention_forward"] for f in files if f and "eager_attention_forward" in vars(f)), None)


def _flash(kernel: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """transformers' flash function, which asks the module's configuration which kernel to load."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = _With(module.config, _attn_implementation=kernel)
    return ALL_ATTENTION_FUNCTIONS[kernel](_With(module, config=config), *args, **kwargs)


class _With:
    """An object with some attributes replaced, for one call."""

    def __init__(self, inner: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced, _inner=inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
