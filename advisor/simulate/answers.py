"""Ops on weightless tensors, answered from memory: the shapes an op returns depend on the shapes it gets.

torch works many of them out in Python, at a tenth of a millisecond each; a training step asks for the same few hundred
thousands of times. So what was answered once is remembered, together with what the op costs a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from tunekit.advisor.simulate import kernels

ROWS = 1_000_003
"""The number of rows that a step is recorded with where it is to stand for any number of rows: a prime that no width, length or
vocabulary is a multiple of, so that what grows with the rows can be told from what does not."""


class Cost(NamedTuple):
    """What one op asks of a device."""

    name: str
    flops: int
    num_bytes: int
    dtype: str
    fixed_flops: int = 0
    """Of `flops`, those that do not grow with the rows; known where the step was recorded with `ROWS` rows."""
    fixed_bytes: int = 0
    """Of `num_bytes`, as above: weights that are read."""

    @classmethod
    def by_parameters(cls, name: str, flops: int, num_bytes: int, dtype: str) -> Cost:
        """The cost of an op that sees no rows at all, such as the optimizer's."""
        return cls(name, flops, num_bytes, dtype, flops, num_bytes)

    def share(self, share: float) -> Cost:
        """A part of the cost, between 0 and 1."""
        flops, num_bytes = round(share * self.flops), round(share * self.num_bytes)
        return Cost(
            self.name,
            flops,
            num_bytes,
            self.dtype,
            round(share * self.fixed_flops),
            round(share * self.fixed_bytes),
        )

    def at_rows(self, rows: int) -> Cost:
        """The cost with another number of rows than the `ROWS` it was recorded with."""
        return Cost(
            self.name,
            self.fixed_flops + (self.flops - self.fixed_flops) // ROWS * rows,
            self.fixed_bytes + (self.num_bytes - self.fixed_bytes) // ROWS * rows,
            self.dtype,
            self.fixed_flops,
            self.fixed_bytes,
        )


class _Known(NamedTuple):
    outs: Any
    cost: Cost | None
    scratch: int


class _Kind(NamedTuple):
    runs: bool
    """Views and whatever must really be called."""
    in_place: bool
    """Changes its first argument and nothing else: nothing to do on weightless tensors."""


_KINDS: dict[Any, _Kind] = {}
_ANSWERS: dict[Any, _Known | None] = {}
_MAX_ANSWERS = 50_000


def _kind(func: Any) -> _Kind:
    kind = _KINDS.get(func)
    if kind is None:
        name = func._schema.name
        mutable = func._schema.is_mutable
        in_place = mutable and name.endswith("_") and torch.Tag.inplace_view not in func.tags and "resize" not in name
        foreign = not name.startswith("aten::")
        kind = _KINDS[func] = _Kind(func.is_view or foreign or (mutable and not in_place), in_place)
    return kind


def answer(func: Any, args: Any, kwargs: Any, device: str, padded: bool) -> tuple[Any, Cost | None, int]:
    """The op's output on weightless tensors, its cost and its scratch bytes."""
    kind = _kind(func)
    if kind.runs or on_host(args):
        return func(*args, **kwargs), None, 0
    special = kernels.SPECIAL.get(func)
    if special is not None:
        return special(args, padded), None, 0
    if _fills_host(args, kwargs):
        # PEFT makes the mask of a prompt on the host first; nobody looks at a value of it, and it would be `ROWS` rows.
        kwargs = {**kwargs, "device": torch.device("meta")}
    try:
        key = (func, device, _key(args), _key(tuple(kwargs.items())) if kwargs else None)
        known = _ANSWERS.get(key, _UNSEEN)
    except TypeError:
        return func(*args, **kwargs), None, 0
    if known is None:
        return func(*args, **kwargs), None, 0
    if known is not _UNSEEN:
        return (_first(args) if kind.in_place else _remake(known.outs)), known.cost, known.scratch
    out = _first(args) if kind.in_place else kernels.SUBSTITUTES.get(func, func)(*args, **kwargs)
    aliased = not kind.in_place and _aliases(out, args)
    cost = None if aliased else _cost(func, args, kwargs, out)
    scratch = 0 if aliased else kernels.scratch_bytes(func, args, device)
    if len(_ANSWERS) >= _MAX_ANSWERS:
        _ANSWERS.clear()
    _ANSWERS[key] = None if aliased else _Known(_describe(out), cost, scratch)
    return out, cost, scratch


def on_host(args: Any) -> bool:
    """Whether an op works on real tensors, such as the step counters of an optimizer."""
    first = args[0] if args else None
    if isinstance(first, list | tuple) and first:
        first = first[0]
    return isinstance(first, torch.Tensor) and not first.is_meta


def _fills_host(args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an op makes a tensor of `ROWS` rows on the host."""
    device = kwargs.get("device")
    shape = args[0] if args else None
    return device is not None and device.type == "cpu" and isinstance(shape, list | tuple) and ROWS in shape


_UNSEEN = _Known(None, None, 0)


def _first(args: Any) -> Any:
    """What an in-place op returns: its first argument; nothing where that is a list."""
    return args[0] if isinstance(args[0], torch.Tensor) else None


def _key(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return (x.shape, x.stride(), x.dtype, x.is_meta)
    if isinstance(x, list | tuple):
        return tuple([_key(i) for i in x])
    if isinstance(x, bool | int | float):
        return (x.__class__, x)
    return x


def _describe(out: Any) -> Any:
    """Outputs without the tensors: what `_remake` needs."""
    if isinstance(out, torch.Tensor):
        return (out.shape, out.stride(), out.dtype, out.device) if out.dtype is not None else None
    if isinstance(out, list | tuple):
        return [_describe(i) for i in out]
    return _Constant(out)


class _Constant(NamedTuple):
    value: Any


def _remake(description: Any) -> Any:
    if isinstance(description, _Constant):
        return description.value
    if isinstance(description, list):
        return tuple([_remake(i) for i in description])
    shape, stride, dtype, device = description
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)


def _aliases(out: Any, args: Any) -> bool:
    """Whether any output shares an input's storage (some ops do without saying so in their schema)."""
    inputs = {t.untyped_storage()._cdata for t in _tensors(args)}
    return any(t.untyped_storage()._cdata in inputs or t.device.type != "meta" for t in _tensors(out))


def _tensors(x: Any) -> Iterable[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for i in x:
            yield from _tensors(i)


def _cost(func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> Cost | None:
    from torch.utils.flop_counter import flop_registry

    inputs, outputs = list(_tensors(args)), list(_tensors(out))
    if not outputs and not inputs:
        return None
    sizes = [t.numel() * t.element_size() for t in (*inputs, *outputs)]
    name = func._schema.name.removeprefix("aten::")
    count: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
    flops = [int(count(*args, **kwargs, out_val=out))] if count else [t.numel() for t in outputs]
    wide = (inputs or outputs)[0]
    return Cost(
        name, sum(flops), sum(sizes), str(wide.dtype).removeprefix("torch."), _not_by_rows(flops), _not_by_rows(sizes)
    )


def _not_by_rows(numbers: Iterable[int]) -> int:
    """The sum of those that do not grow with the rows."""
    return sum(n for n in numbers if n % ROWS)
