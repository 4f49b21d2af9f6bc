"""Where the residual stream of each layer is added to, found by running the model once without weights."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from tunekit.attention import recorded, weightless_base
from tunekit.structure import base_model, base_name, blocks

if TYPE_CHECKING:
    from torch import nn

Location = Literal["attention", "cross_attention", "feed_forward"]
LOCATIONS: tuple[Location, ...] = ("attention", "cross_attention", "feed_forward")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sublayer:
    """One sublayer of a layer: `stream = stream + sublayer(stream)`, with a norm in front of it or after the sum."""

    block: str
    """Dotted name of its layer in the task model."""
    index: int
    """The layer's number, counted over the encoder and then the decoder."""
    location: Location
    width: int
    """Features of the stream."""
    entry: str
    """The first module that is called with the stream as it comes in, as its first argument."""
    exit: str
    """The module that returns what is added to the stream."""
    norm: str | None
    """The normalisation of the sum, in models that normalise after each sublayer; None in those that do so before."""


def sublayers(model: nn.Module) -> tuple[Sublayer, ...]:
    """The sublayers of a transformers model in the order of its layers; those of layers that run twice once.

    Empty where the model's code cannot be run on shapes, or adds nothing to a stream that modules pass on. The base is built again without weights and run on a few tokens, so nothing is assumed of names or classes and
    nothing happens to `model`.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
        >>> [(s.location, s.entry, s.exit) for s in sublayers(model)]
        [('attention', 'transformer.h.0.ln_1', 'transformer.h.0.attn.resid_dropout'), ('feed_forward', 'transformer.h.0.ln_2', 'transformer.h.0.mlp')]
    """
    base, prefix = base_model(model), f"{base_name(model)}." if base_name(model) else ""
    # Variants of an adapter ask the same of the same architecture; a class and its configuration decide the answer.
    described = (type(base), json.dumps(base.config.to_dict(), sort_keys=True, default=str))
    if described not in _known:
        while len(_known) >= _MOST_KNOWN:
            _known.popitem(last=False)
        _known[described] = _sublayers(weightless_base(base))
    return tuple(_under(prefix, at) for at in _known[described])


_known: OrderedDict[Any, tuple[Sublayer, ...]] = OrderedDict()
_MOST_KNOWN = 16


def _under(prefix: str, at: Sublayer) -> Sublayer:
    """The sublayer by its names in the task model."""
    norm = None if at.norm is None else prefix + at.norm
    return replace(at, block=prefix + at.block, entry=prefix + at.entry, exit=prefix + at.exit, norm=norm)


def _sublayers(skeleton: Any) -> tuple[Sublayer, ...]:
    """The sublayers of a base without weights, by their names in it."""
    seq2seq = bool(getattr(skeleton.config, "is_encoder_decoder", False))
    layers = [m for _, found in blocks(skeleton) for m in _leaves(found)]
    names = {id(m): name for name, m in skeleton.named_modules()}
    trace = _traced(skeleton) or _traced(_eager(skeleton))
    if trace is None:
        return ()
    return tuple(
        Sublayer(
            block=names[id(layer)],
            index=index,
            location=found.location,
            width=found.width,
            entry=names[id(found.entry)],
            exit=names[id(found.exit)],
            norm=names[id(found.norm)] if found.norm is not None else None,
        )
        for index, layer in enumerate(layers)
        for found in _of_layer(trace, layer, seq2seq)
    )


def _leaves(layers: nn.ModuleList) -> Iterator[nn.Module]:
    """The layers in a list of layers, or in the groups of layers that it holds (ALBERT)."""
    from torch import nn

    for layer in layers:
        inner = [m for m in layer.children() if isinstance(m, nn.ModuleList)]
        held = [m for group in inner for m in group]
        whole = sum(p.numel() for p in layer.parameters())
        if len(inner) == 1 and held and sum(p.numel() for m in held for p in m.parameters()) == whole:
            # T5's blocks hold their sublayers in a list too; those are no layers, having no two sublayers each.
            yield from held if all(_has_two_parts(m) for m in held) else (layer,)
        else:
            yield layer


def _has_two_parts(module: nn.Module) -> bool:
    """Whether a module holds both an attention and something beside it, as a whole layer does."""
    widths = [n for n, m in module.named_children() if any(True for _ in m.parameters())]
    attends = any("att" in n.lower() for n in widths)
    return attends and len([n for n in widths if "norm" not in n.lower()]) > 1


# ---------------------------------------------------------------------------------------------- one forward pass
@dataclass(frozen=True, slots=True, eq=False)
class _Called:
    """A module was entered (`out` None) or left. `first` is its first tensor argument, `plain` whether it returned a tensor."""

    module: nn.Module
    first: int | None
    out: int | None
    plain: bool
    entered: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Added:
    left: int
    right: int
    out: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Attended:
    pass


@dataclass(slots=True, eq=False)
class _Trace:
    """What happened in a forward pass; tensors by identity, kept alive so that an identity stands for one tensor."""

    events: list[Any] = field(default_factory=list)
    alive: list[Any] = field(default_factory=list)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    same: dict[int, int] = field(default_factory=dict)
    """Of a tensor that is another one laid out anew (OPT flattens rows before its feed-forward): that other one."""

    def note(self, value: Any) -> int | None:
        import torch

        if isinstance(value, tuple | list) and value:
            value = value[0]
        elif isinstance(value, dict) and value:
            value = next(iter(value.values()))
        if not isinstance(value, torch.Tensor):
            return None
        self.alive.append(value)
        known = self.same.get(id(value), id(value))
        self.shapes.setdefault(known, _rows_and_width(tuple(value.shape)))
        return known


def _rows_and_width(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(tokens, features), whatever the tokens are laid out in."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else ()


def _eager(skeleton: nn.Module) -> nn.Module:
    """The weightless model with attention by plain multiplication, for those with attention code of their own (Falcon)."""
    for module in skeleton.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            module.config._attn_implementation = "eager"
    return skeleton


def _traced(skeleton: nn.Module) -> _Trace | None:
    """One forward pass of a weightless model; None where its code cannot be run on shapes."""
    trace = _Trace()
    handles = []
    for module in skeleton.modules():
        handles.append(module.register_forward_pre_hook(_entering(trace), with_kwargs=True))
        handles.append(module.register_forward_hook(_leaving(trace)))
    try:
        with _additions(trace):
            attending = {id(call.module) for call in recorded(skeleton)}
    except Exception:
        # Remote code, inputs of another kind, code that looks at values: whatever it raises, nothing is known of it.
        return None
    finally:
        for handle in handles:
            handle.remove()
    events: list[Any] = []
    for event in trace.events:
        events.append(event)
        if isinstance(event, _Called) and event.entered and id(event.module) in attending:
            events.append(_Attended())
    trace.events = events
    return trace


def _entering(trace: _Trace) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        first = trace.note(args[:1] or kwargs.get("hidden_states"))
        trace.events.append(_Called(module, first, None, False, True))

    return hook


def _leaving(trace: _Trace) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        out = trace.note(output)
        trace.events.append(_Called(module, None, out, not isinstance(output, tuple | list | dict), False))

    return hook


def _additions(trace: _Trace) -> Any:
    """A mode that notes sums of equal shapes, and attention that is computed without transformers' interface."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            ids = [i for a in args[:2] if isinstance(a, torch.Tensor) and (i := trace.note(a)) is not None]
            out = func(*args, **(kwargs or {}))
            name = func._schema.name
            if name in ("aten::view", "aten::_unsafe_view") and out.shape[-1:] == args[0].shape[-1:]:
                trace.alive.append(out)
                trace.same[id(out)] = ids[0]
            elif name in ("aten::add", "aten::add_") and len(ids) == 2:
                left, right = (_rows_and_width(tuple(a.shape)) for a in args[:2])
                made = trace.note(out)
                if left == right and made is not None:
                    trace.events.append(_Added(ids[0], ids[1], made, left))
            elif (name == "aten::_softmax" and out.ndim >= 4) or "scaled_dot_product" in name:
                trace.events.append(_Attended())
            return out

    return Mode()


# ---------------------------------------------------------------------------------------------- one layer
@dataclass(slots=True, eq=False)
class _Found:
    location: Location
    width: int
    entry: nn.Module
    exit: nn.Module
    sum: int
    stream: int
    norm: nn.Module | None = None


def _of_layer(trace: _Trace, layer: nn.Module, seq2seq: bool) -> list[_Found]:
    """The sublayers of the first run of a layer."""
    window = _window(trace.events, layer)
    if not window or window[0].first is None:
        return []
    shape = trace.shapes[window[0].first]
    streams, terms = {window[0].first}, dict[int, list[int]]()
    found: list[_Found] = []
    attended, num_attentions = False, 0
    for at, event in enumerate(window):
        attended = attended or isinstance(event, _Attended)
        if _is_norm_leaving(event) and _argument(window, at) in streams:
            streams.add(event.out)
        if not isinstance(event, _Added) or event.shape != shape:
            continue
        parts = [*terms.get(event.left, [event.left]), *terms.get(event.right, [event.right])]
        stream, added = [p for p in parts if p in streams], [p for p in parts if p not in streams]
        if len(stream) != 1 or not added:
            terms[event.out] = parts
            continue
        for term in added:
            attends = attended if len(added) == 1 else _attends(window, term)
            num_attentions += attends
            location: Location = "feed_forward"
            if attends:
                location = "cross_attention" if seq2seq and num_attentions > 1 else "attention"
            made = _found(window, at, location, stream[0], term, event.out, shape[-1])
            if made is not None:
                found.append(made)
        streams.add(event.out)
        attended = False
    for one in found:
        one.norm = _norm_of(window, one.sum, {f.stream for f in found})
    return found


def _window(events: list[Any], layer: nn.Module) -> list[Any]:
    start = next((i for i, e in enumerate(events) if isinstance(e, _Called) and e.module is layer and e.entered), None)
    if start is None:
        return []
    end = next(i for i in range(start, len(events)) if _leaves_module(events[i], layer))
    return events[start : end + 1]


def _leaves_module(event: Any, module: nn.Module) -> bool:
    return isinstance(event, _Called) and event.module is module and not event.entered


def _argument(window: list[Any], left_at: int) -> int | None:
    """What the module that is left here was called with."""
    module = window[left_at].module
    for event in reversed(window[:left_at]):
        if isinstance(event, _Called) and event.module is module and event.entered:
            return event.first
    return None


def _attends(window: list[Any], term: int) -> bool:
    """Whether attention happens in any of the modules that return this tensor."""
    for at, event in enumerate(window):
        if isinstance(event, _Called) and not event.entered and event.out == term:
            start = next(i for i, e in enumerate(window) if isinstance(e, _Called) and e.module is event.module)
            if any(isinstance(e, _Attended) for e in window[start:at]):
                return True
    return False


def _found(
    window: list[Any], at: int, location: Location, stream: int, term: int, total: int, width: int
) -> _Found | None:
    """The sublayer between a stream and what is added to it, where both go through modules that can be reached."""
    before = [e for e in window[1:at] if isinstance(e, _Called)]
    entries = [e.module for e in before if e.entered and e.first == stream]
    entry = next((m for m in entries if not m._modules), entries[0] if entries else None)
    exits = [e for e in before if not e.entered and e.out == term]
    exit_ = next((e for e in reversed(exits) if e.plain), exits[-1] if exits else None)
    if entry is None or exit_ is None:
        return None
    return _Found(location, width, entry, exit_.module, total, stream)


def _norm_of(window: list[Any], total: int, streams: set[int]) -> nn.Module | None:
    """The norm after a sum, where the layer goes on with its output and never with the sum itself."""
    if total in streams or window[-1].out == total:
        return None
    calls = [e.module for e in window[1:] if isinstance(e, _Called) and e.entered and e.first == total]
    return next((m for m in calls if _is_norm(m)), None)


def _is_norm_leaving(event: Any) -> bool:
    return isinstance(event, _Called) and not event.entered and event.out is not None and _is_norm(event.module)


def _is_norm(module: nn.Module) -> bool:
    """Whether a module only has vectors to multiply by and add."""
    own = list(module.parameters())
    return not module._modules and bool(own) and all(p.ndim == 1 for p in own)
