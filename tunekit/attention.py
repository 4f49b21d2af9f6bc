"""Where a model attends, found by running it once without weights: what reaches transformers' attention interface."""

from __future__ import annotations

import copy
import inspect
import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tunekit.structure import base_model, base_name

if TYPE_CHECKING:
    import torch
    from torch import nn

Role = Literal["self", "encoder", "decoder", "cross"]
"""`self` in a model of one stack; in an encoder-decoder its encoder's and decoder's own and the decoder's look at the encoder."""

_RECORDER = "tunekit_recorder"
_SOURCE_LENGTH, _TARGET_LENGTH = 3, 2


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of the attention interface."""

    module: nn.Module
    heads: int
    key_dim: int
    value_dim: int
    queries: int
    keys: int
    window: int | None


_calls: ContextVar[list[Call]] = ContextVar("_calls")


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """One module that attends through transformers' attention interface."""

    name: str
    """Its dotted name in the task model."""
    role: Role
    num_heads: int
    """Heads of its keys and values, before they are repeated for grouped queries."""
    key_dim: int
    value_dim: int
    window: int | None = None
    """Tokens that it looks back at most; None: all."""


def attentions(model: nn.Module) -> tuple[Attention, ...]:
    """The modules of a transformers model that attend through its attention interface, in the order of the forward pass.

    The base is built again without weights and run on a few tokens, so nothing is assumed of names, shapes or classes
    and nothing happens to `model`. A model with attention code of its own (DeBERTa, Falcon, BLOOM) has none.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
        >>> [(a.name, a.role, a.num_heads, a.key_dim) for a in attentions(model)]
        [('transformer.h.0.attn', 'self', 2, 4)]
    """
    base, prefix = base_model(model), base_name(model)
    # Many methods ask the same of the same architecture; a class and its configuration decide the answer.
    described = (type(base), json.dumps(base.config.to_dict(), sort_keys=True, default=str))
    if described not in _found:
        while len(_found) >= _MAX_FOUND:
            _found.popitem(last=False)
        _found[described] = _attentions(base)
    return tuple(replace(a, name=f"{prefix}.{a.name}" if prefix else a.name) for a in _found[described])


_found: OrderedDict[Any, tuple[Attention, ...]] = OrderedDict()
_MAX_FOUND = 16


def _attentions(base: nn.Module) -> tuple[Attention, ...]:
    skeleton = weightless_base(base)
    names = {id(m): name for name, m in skeleton.named_modules()}
    seq2seq = bool(getattr(skeleton.config, "is_encoder_decoder", False))
    found: dict[str, Attention] = {}
    try:
        calls = recorded(skeleton)
    except Exception:
        # Code that cannot even run on shapes, or on a kernel that it does not know (Falcon, remote code): whatever it
        # raises, nothing can be joined to its attention.
        return ()
    for call in calls:
        name = names[id(call.module)]
        role = _role(call.queries, call.keys) if seq2seq else "self"
        at = Attention(
            name=name,
            role=role,
            num_heads=call.heads,
            key_dim=call.key_dim,
            value_dim=call.value_dim,
            window=call.window,
        )
        found.setdefault(name, at)
    return tuple(found.values())


def has_interface(model: nn.Module) -> bool:
    """Whether anything in the model attends through transformers' attention interface, so that others can reach it."""
    try:
        return bool(attentions(model))
    except Exception:
        # A model that cannot be built again gives no promise either.
        return False


def weightless_base(base: nn.Module) -> nn.Module:
    """The same architecture on the meta device, in evaluation mode."""
    import torch

    config = copy.deepcopy(base.config)
    with torch.device("meta"):
        skeleton = type(base)(config)
    for module in skeleton.modules():
        own = getattr(module, "config", None)
        if own is not None and hasattr(own, "_attn_implementation"):
            own._attn_implementation = _RECORDER
            if getattr(own, "_experts_implementation", None) is not None:
                # The other kernels for experts look at values.
                own._experts_implementation = "batched_mm"
    return skeleton.eval()


def recorded(skeleton: nn.Module) -> list[Call]:
    """Every call of the attention interface that one forward pass makes."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # Registered for attention and not for masks: then no mask is made, whose making would look at values.
    ALL_ATTENTION_FUNCTIONS.register(_RECORDER, _record)
    with torch.no_grad(), torch.device("meta"), zero_for_values(), _recording() as calls:
        skeleton(**_tokens(skeleton))
    return calls


def zero_for_values() -> AbstractContextManager[Any]:
    """Weightless tensors hold no values; code that reads one (is there padding?) gets zero, and finds none that are not."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Zero(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                return 0
            if func is torch.ops.aten.nonzero.default:  # which tokens an expert of Switch gets
                return args[0].new_empty((0, args[0].ndim), dtype=torch.long)
            return func(*args, **(kwargs or {}))

    return Zero()


@contextmanager
def _recording() -> Iterator[list[Call]]:
    calls: list[Call] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def _record(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
    _calls.get().append(
        Call(module, key.shape[1], key.shape[3], value.shape[3], query.shape[2], key.shape[2], window or None)
    )
    batch, heads, queries, _width = query.shape
    return query.new_empty(batch, queries, heads, value.shape[3]), None


def _tokens(skeleton: nn.Module) -> dict[str, torch.Tensor]:
    """Inputs whose lengths tell the source from the target."""
    import torch

    parameters = inspect.signature(skeleton.forward).parameters
    tokens: dict[str, Any] = {"input_ids": torch.zeros(1, _SOURCE_LENGTH, dtype=torch.long)}
    if getattr(skeleton.config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        tokens["decoder_input_ids"] = torch.zeros(1, _TARGET_LENGTH, dtype=torch.long)
    if "attention_mask" in parameters:
        tokens["attention_mask"] = torch.ones(1, _SOURCE_LENGTH, dtype=torch.long)
    if "use_cache" in parameters:
        tokens["use_cache"] = False
    return tokens


def _role(queries: int, keys: int) -> Role:
    if queries == _SOURCE_LENGTH:
        return "encoder"
    return "decoder" if keys == _TARGET_LENGTH else "cross"
