"""One training step, recorded: every allocation and free in order, by part, moment and block, and every op's cost.

The recorder is a dispatch mode. On weightless (meta) tensors it answers ops it has seen before from memory, so that a
step costs tens of milliseconds; on real tensors it only watches, which is how the tests compare the two.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tunekit.advisor.simulate import kernels

Block = tuple[int, int]
"""(stack, index): the index-th block of the stack-th list of blocks."""

PARTS = (
    "weights",
    "adapters",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "temporaries",
    "workspace",
    "communication",
)
"""What memory is for. `adapters` are parameters that the method added; `workspace` belongs to the device's libraries."""

_NO_SEQUENCE = 2**63


class Cost(NamedTuple):
    """What one op asks of a device."""

    name: str
    flops: int
    num_bytes: int
    dtype: str


@dataclass(slots=True)
class Segment:
    """Consecutive events of one moment and one block; events are storage numbers, their complements are frees."""

    moment: str
    block: Block | None
    events: list[int] = field(default_factory=list)
    births: int = 0
    ops: Counter[Cost] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """A recorded step. Storages are numbered in the order of their birth."""

    segments: tuple[Segment, ...]
    sizes: tuple[int, ...]
    """Bytes by storage number."""
    births: tuple[tuple[int, int], ...]
    """(segment, ordinal among the births of that segment) by storage number."""
    parts: tuple[str, ...]
    """Part by storage number."""


class _Watch(weakref.ref[Any]):
    """A weak reference to a storage that knows its number."""

    __slots__ = ("address", "number")
    number: int
    address: int


class Recorder(TorchDispatchMode):
    """Records what happens to storages while it is active.

    Args:
        device: `cpu` or `cuda`: whose kernels the ops stand for.
        padded: Whether the batch holds padding; decides what a mask's "is everything real?" is answered.
        weightless: Whether tensors are meta tensors, so that ops may be answered from memory.
    """

    def __init__(self, device: str, padded: bool, weightless: bool = True) -> None:
        super().__init__()
        self._device, self._padded, self._weightless = device, padded, weightless
        self._segments: list[Segment] = [Segment("start", None)]
        self._sizes: list[int] = []
        self._births: list[tuple[int, int]] = []
        self._born_in: list[str] = []
        self._died_in: dict[int, str] = {}
        self._marks: dict[int, str] = {}
        self._loss: set[int] = set()
        self._live: dict[int, _Watch] = {}
        self._owners: dict[int, Block] = {}
        self._bounds: list[int] = []
        self._bound_blocks: list[Block | None] = []
        self._loss_from = _NO_SEQUENCE
        self._block: Block | None = None
        self._ignored: set[int] = set()
        self._closed = False
        self.moment = "start"

    # ------------------------------------------------------------------ what the loop tells it
    def own(self, tensors: Iterable[torch.Tensor], part: str, block: Block | None = None) -> None:
        """Takes tensors that were there before into account, as `part` of a block."""
        for tensor in tensors:
            self._enter_segment(block)
            number = self._track(tensor)
            if number is not None:
                self._marks.setdefault(number, part)
                if block is not None:
                    self._owners.setdefault(number, block)

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leaves tensors out of account that a device would not hold, such as step counters."""
        self._ignored.update(t.untyped_storage()._cdata for t in tensors)

    def mark(self, tensors: Iterable[torch.Tensor], part: str) -> None:
        """Says what recorded tensors turned out to be."""
        for tensor in tensors:
            watch = self._live.get(tensor.untyped_storage()._cdata)
            if watch is not None:
                self._marks[watch.number] = part

    def watch(self, stacks: Sequence[Sequence[torch.nn.Module]], head: torch.nn.Module | None) -> list[Any]:
        """Follows which block runs by hooks; returns their handles."""
        handles = []
        for s, stack in enumerate(stacks):
            for i, module in enumerate(stack):
                last = i == len(stack) - 1
                handles.append(module.register_forward_pre_hook(lambda *_, b=(s, i): self._enter(b)))
                if last:
                    handles.append(module.register_forward_hook(lambda *_: self._enter(None)))
        if head is not None:
            handles.append(head.register_forward_pre_hook(lambda *_: self.begin_loss()))
        return handles

    def begin_loss(self) -> None:
        """From here on the forward pass makes logits and the loss."""
        if self.moment == "forward":
            self.moment = "loss"
            self._loss_from = torch.autograd._get_sequence_nr()

    def add_cost(self, cost: Cost) -> None:
        """Counts an op that no mode can see."""
        self._enter_segment(None).ops[cost] += 1

    def close(self) -> Trace:
        """The finished record."""
        self._closed = True
        parts = tuple(self._part(n) for n in range(len(self._sizes)))
        return Trace(segments=tuple(self._segments), sizes=tuple(self._sizes), births=tuple(self._births), parts=parts)

    # ------------------------------------------------------------------ where we are
    def _enter(self, block: Block | None) -> None:
        self._bounds.append(torch.autograd._get_sequence_nr())
        self._bound_blocks.append(block)
        if self.moment == "forward":
            self._block = block

    def _locate(self) -> Block | None:
        """The block whose forward or backward runs now; between nodes of the backward pass, the last one's."""
        if self.moment != "backward":
            return self._block if self.moment in ("forward", "loss") else None
        node = torch._C._current_autograd_node()
        sequence = node._sequence_nr() if node is not None else _NO_SEQUENCE
        if sequence >= _NO_SEQUENCE:
            return self._block
        at = bisect_right(self._bounds, sequence) - 1
        self._block = self._bound_blocks[at] if at >= 0 else None
        self._in_loss = self._block is None and sequence >= self._loss_from
        return self._block

    _in_loss = False

    def _enter_segment(self, block: Block | None) -> Segment:
        segment = self._segments[-1]
        if segment.block != block or segment.moment != self.moment:
            segment = Segment(self.moment, block)
            self._segments.append(segment)
        return segment

    # ------------------------------------------------------------------ storages
    def _track(self, tensor: torch.Tensor) -> int | None:
        if self._weightless and not tensor.is_meta:
            return None  # a counter that an optimizer keeps on the host
        storage = tensor.untyped_storage()
        address = storage._cdata
        known = self._live.get(address)
        if known is not None:
            return known.number
        if address in self._ignored:
            return None
        size = storage.nbytes()
        if not size:
            return None
        watch = _Watch(storage, self._freed)
        watch.number, watch.address = self._born(size), address
        self._live[address] = watch
        return watch.number

    def _born(self, size: int) -> int:
        number, segment = len(self._sizes), self._segments[-1]
        self._sizes.append(size)
        self._births.append((len(self._segments) - 1, segment.births))
        self._born_in.append(self.moment)
        if self.moment == "loss" or (self.moment == "backward" and self._in_loss):
            self._loss.add(number)
        segment.births += 1
        segment.events.append(number)
        return number

    def _freed(self, watch: _Watch) -> None:
        if self._closed:
            return
        del self._live[watch.address]
        self._died_in[watch.number] = self.moment
        self._segments[-1].events.append(~watch.number)

    def _part(self, number: int) -> str:
        if number in self._marks:
            return self._marks[number]
        if number in self._loss:
            return "logits"
        if self._born_in[number] == "forward":
            return "temporaries" if self._died_in.get(number) == "forward" else "activations"
        return "temporaries"

    # ------------------------------------------------------------------ ops
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        block = self._locate()
        if self.moment in ("clip", "optimizer"):
            block = self._owner(args)
        segment = self._enter_segment(block)
        if not self._weightless:
            out = func(*args, **kwargs)
        else:
            out, cost, scratch = _answer(func, args, kwargs, self._device, self._padded)
            if cost is not None:
                segment.ops[cost] += 1
            if scratch:
                segment.events.append(~self._born(scratch))
                self._died_in[len(self._sizes) - 1] = self.moment
        self._record(out, args, block)
        return out

    def _record(self, out: Any, args: Any, block: Block | None) -> None:
        if isinstance(out, torch.Tensor):
            number = self._track(out)
            if block is not None and number is not None and self.moment == "optimizer":
                self._owners.setdefault(number, block)
        elif isinstance(out, list | tuple):
            peers = args[0] if args and isinstance(args[0], list | tuple) and len(args[0]) == len(out) else None
            for i, item in enumerate(out):
                if peers is not None and self.moment in ("clip", "optimizer"):
                    block = self._owner((peers[i],))
                    self._enter_segment(block)
                self._record(item, (), block)

    def _owner(self, args: Any) -> Block | None:
        """The block that an op of the optimizer works for: its first tensor's."""
        first = next((a for a in args if isinstance(a, torch.Tensor)), None)
        if self._weightless and _on_host(args):
            return self._segments[-1].block
        watch = self._live.get(first.untyped_storage()._cdata) if first is not None else None
        return self._owners.get(watch.number) if watch is not None else None

    def adopt(self, pairs: Iterable[tuple[torch.Tensor, Block | None]]) -> None:
        """Says which block recorded tensors (gradients) belong to."""
        for tensor, block in pairs:
            watch = self._live.get(tensor.untyped_storage()._cdata)
            if watch is not None and block is not None:
                self._owners[watch.number] = block


# ---------------------------------------------------------------------- answering ops from memory
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


def _answer(func: Any, args: Any, kwargs: Any, device: str, padded: bool) -> tuple[Any, Cost | None, int]:
    """The op's output on weightless tensors, its cost and its scratch bytes."""
    kind = _kind(func)
    if kind.runs or _on_host(args):
        return func(*args, **kwargs), None, 0
    special = kernels.SPECIAL.get(func)
    if special is not None:
        return special(args, padded), None, 0
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


def _on_host(args: Any) -> bool:
    """Whether an op works on real tensors, such as the step counters of an optimizer."""
    first = args[0] if args else None
    if isinstance(first, list | tuple) and first:
        first = first[0]
    return isinstance(first, torch.Tensor) and not first.is_meta


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
    num_bytes = sum(t.numel() * t.element_size() for t in inputs) + sum(t.numel() * t.element_size() for t in outputs)
    name = func._schema.name.removeprefix("aten::")
    count: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
    flops = count(*args, **kwargs, out_val=out) if count else sum(t.numel() for t in outputs)
    wide = (inputs or outputs)[0]
    return Cost(name, int(flops), int(num_bytes), str(wide.dtype).removeprefix("torch."))
