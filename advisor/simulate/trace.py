"""One training step, recorded: every allocation and free in order, by part, moment and block, and every op's cost.

The recorder is a dispatch mode. Weightless (meta) tensors are answered from memory (see `answers`); on real tensors it
only watches, which is how the tests compare the two.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tunekit.advisor.simulate import kernels
from tunekit.advisor.simulate.answers import Cost, answer, on_host
from tunekit.contracts import REPEATED

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
    "cache",
)
"""What memory is for. `cache` holds keys and values while answers are generated. `adapters` are parameters that the method added; `workspace` belongs to the device's libraries."""

EVALUATION = "evaluation"
"""The moment of a forward pass of which nothing is kept."""
GENERATION, NEXT_TOKEN = "generation", "next token"
"""The moments of two passes after it, each for one more token."""
_WITHOUT_GRADIENT = (EVALUATION, GENERATION, NEXT_TOKEN)

_NO_SEQUENCE = 2**63


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
        self.counts_ops = True
        """Whether what is done counts as work of the step; off while a step before it is taken."""

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
        self._in_loss = self.moment in _WITHOUT_GRADIENT
        if self.moment == "forward":
            self.moment = "loss"
            self._loss_from = torch.autograd._get_sequence_nr()

    def turn(self, moment: str) -> None:
        """Another moment begins, also where nothing but frees happens in it."""
        self.moment, self._block, self._in_loss = moment, None, False
        self._enter_segment(None)

    def add_cost(self, cost: Cost) -> None:
        """Counts an op that no mode can see."""
        if self.counts_ops:
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
        if self.moment == "forward" or self.moment in _WITHOUT_GRADIENT:
            self._block = block

    def _locate(self) -> Block | None:
        """The block whose forward or backward runs now; between nodes of the backward pass, the last one's."""
        if self.moment != "backward":
            return self._block if self.moment in ("forward", "loss", *_WITHOUT_GRADIENT) else None
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
        if self.moment == "loss" or (self.moment in ("backward", *_WITHOUT_GRADIENT) and self._in_loss):
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
            out, cost, scratch = answer(func, args, kwargs, self._device, self._padded)
            if self.moment == "forward":
                kernels.follow_truth(func, args, out)
            if cost is None or not self.counts_ops:
                pass
            elif args and isinstance(args[0], list | tuple) and self.moment == "optimizer":
                self._share_out(cost, args[0])
            else:
                segment.ops[_as_often(cost)] += 1
            if scratch:
                segment.events.append(~self._born(scratch))
                self._died_in[len(self._sizes) - 1] = self.moment
        self._record(out, args, block)
        return out

    def _share_out(self, cost: Cost, tensors: Sequence[torch.Tensor]) -> None:
        """Counts an op over a list of tensors in the blocks that the tensors belong to, by size."""
        total = sum(t.numel() for t in tensors) or 1
        for block, group in groupby(tensors, key=lambda t: self._owner((t,))):
            share = sum(t.numel() for t in group) / total
            self._enter_segment(block).ops[cost.share(share)] += 1

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
        if self._weightless and on_host(args):
            return self._segments[-1].block
        watch = self._live.get(first.untyped_storage()._cdata) if first is not None else None
        return self._owners.get(watch.number) if watch is not None else None

    def adopt(self, pairs: Iterable[tuple[torch.Tensor, Block | None]]) -> None:
        """Says which block recorded tensors (gradients) belong to."""
        for tensor, block in pairs:
            watch = self._live.get(tensor.untyped_storage()._cdata)
            if watch is not None and block is not None:
                self._owners[watch.number] = block


def _as_often(cost: Cost) -> Cost:
    """The cost of an op as often as it stands for: a loop over rows grows with them as a whole."""
    all_of_it, this = REPEATED.get()
    if all_of_it == this:
        return cost
    flops, num_bytes = cost.flops * all_of_it // this, cost.num_bytes * all_of_it // this
    return cost._replace(flops=flops, num_bytes=num_bytes, fixed_flops=0, fixed_bytes=0)
