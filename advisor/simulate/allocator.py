"""PyTorch's caching allocator for CUDA, replayed without CUDA: what it reserves for a sequence of allocations.

Follows c10/cuda/CUDACachingAllocator.cpp with its default settings: sizes rounded to 512 bytes; requests up to 1 MiB from
segments of 2 MiB; up to 10 MiB from segments of 20 MiB; larger ones from segments of their own, rounded to 2 MiB; the
smallest free block that is large enough is taken and split; neighbours are joined when freed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tunekit.advisor.simulate.loop import BETWEEN
from tunekit.advisor.simulate.trace import PARTS

if TYPE_CHECKING:
    from tunekit.advisor.simulate.depth import Timeline

KIB, MIB = 2**10, 2**20
_UNIT = 512
"""Bytes that sizes are rounded up to. In here sizes and addresses are counted in them."""
_SMALL = MIB // _UNIT
_SMALL_SEGMENT = 2 * MIB // _UNIT
_LARGE_SEGMENT = 20 * MIB // _UNIT
_MIN_LARGE = 10 * MIB // _UNIT
_ROUND_LARGE = 2 * MIB // _UNIT
_WEIGHTS, _OPTIMIZER = PARTS.index("weights"), PARTS.index("optimizer")


def units(num_bytes: np.ndarray) -> np.ndarray:
    """How many units the sizes take.

    Example:
        >>> units(np.array([0, 512, 513])).tolist()
        [1, 1, 2]
    """
    return np.maximum(-(-num_bytes // _UNIT), 1)


class _Pool:
    """Free blocks by size: a few sizes share a great many blocks."""

    __slots__ = ("at", "sizes")

    def __init__(self) -> None:
        self.sizes: list[int] = []
        """Ascending."""
        self.at: dict[int, list[int]] = {}
        """Size to addresses, ascending."""


class CachingAllocator:
    """Replays allocations and frees by name and keeps the peaks.

    Args:
        capacity: Bytes at which the device is full: segments that hold nothing are given back then, before more is asked
            for (`alloc_block` after `release_cached_blocks`). None: never full.

    Example:
        >>> a = CachingAllocator()
        >>> a.allocate(0, 100)
        >>> a.allocated, a.reserved
        (512, 2097152)
        >>> a.free(0)
        >>> a.allocated, a.reserved
        (0, 2097152)
    """

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = None if capacity is None else capacity // _UNIT
        self._allocated = self._reserved = self._peak_allocated = self._peak_reserved = 0
        self._small, self._large = _Pool(), _Pool()
        self._taken: dict[int, tuple[int, int]] = {}
        """Name to address and size."""
        self._free: dict[int, int] = {}
        """Free blocks: address to size."""
        self._starts: dict[int, int] = {}
        """Free blocks: where they end to where they begin."""
        self._segments: dict[int, int] = {}
        self._end = 0

    allocated = property(lambda self: self._allocated * _UNIT, doc="Bytes that are taken.")
    reserved = property(lambda self: self._reserved * _UNIT, doc="Bytes of all segments.")
    peak_allocated = property(lambda self: self._peak_allocated * _UNIT)
    peak_reserved = property(lambda self: self._peak_reserved * _UNIT)

    def allocate(self, name: int, num_bytes: int) -> None:
        """Takes `num_bytes` under a name that is not in use."""
        self.run((name,), units(np.array([num_bytes])).tolist())

    def free(self, name: int) -> None:
        """Gives back what was taken under a name; joins free neighbours."""
        self.run((name,), (0,))

    def run(self, names: Sequence[int], sizes: Sequence[int]) -> None:
        """Takes each size, in units, under its name; where the size is 0, what was taken under it is given back.

        An answer runs through half a million of them: everything is done in this one loop, on plain whole numbers.
        """
        taken, free, starts, limit = self._taken, self._free, self._starts, _SMALL
        small, large, small_at, large_at = self._small.sizes, self._large.sizes, self._small.at, self._large.at
        allocated, peak = self._allocated, self._peak_allocated
        for name, size in zip(names, sizes, strict=True):
            if size:
                order, at = (small, small_at) if size <= limit else (large, large_at)
                place = bisect_left(order, size)
                if place < len(order):
                    whole = order[place]
                    same = at[whole]
                    address = same.pop(0)
                    if not same:
                        del at[whole], order[place]
                    del free[address]
                else:
                    address, whole = self._segment(size)
                rest = whole - size
                if rest > limit or (rest and size <= limit):
                    begin = address + size
                    free[begin] = rest
                    starts[address + whole] = begin
                    if rest in at:
                        insort(at[rest], begin)
                    else:
                        at[rest] = [begin]
                        insort(order, rest)
                else:
                    size = whole
                    starts.pop(address + whole, None)
                taken[name] = address, size
                allocated += size
                if allocated > peak:
                    peak = allocated
            else:
                address, size = taken.pop(name)
                allocated -= size
                order, at = (small, small_at) if size <= limit else (large, large_at)
                end = address + size
                if end in free:
                    rest = free.pop(end)
                    same = at[rest]
                    if len(same) > 1:
                        same.remove(end)
                    else:
                        del at[rest]
                        order.remove(rest)
                    size += rest
                    end += rest
                if address in starts:
                    begin = starts.pop(address)
                    rest = address - begin
                    same = at[rest]
                    if len(same) > 1:
                        same.remove(begin)
                    else:
                        del at[rest]
                        order.remove(rest)
                    size += rest
                    address = begin
                free[address] = size
                starts[end] = address
                if size in at:
                    insort(at[size], address)
                else:
                    at[size] = [address]
                    insort(order, size)
        self._allocated, self._peak_allocated = allocated, peak

    def preload(self, num_bytes: int) -> None:
        """Takes and gives back one block, as transformers does before it loads weights onto a device."""
        address, size = self._segment(max(-(-num_bytes // _UNIT), _MIN_LARGE))
        self._free[address], self._starts[address + size] = size, address
        _offer(self._large, size, address)

    def free_between(self, start: int, end: int) -> None:
        """Gives back what is alive of the names from `start` to before `end`, in ascending order."""
        names = sorted(name for name in self._taken if start <= name < end)
        self.run(names, [0] * len(names))

    def empty_cache(self) -> None:
        """Gives segments without any allocation back to the device."""
        for address, size in list(self._free.items()):
            if self._segments.get(address) == size:
                del self._free[address], self._starts[address + size], self._segments[address]
                _withdraw(self._small if size == _SMALL_SEGMENT else self._large, size, address)
                self._reserved -= size

    def _segment(self, size: int) -> tuple[int, int]:
        """Address and size of a new one, for a block of at least `size`."""
        if size <= _SMALL:
            total = _SMALL_SEGMENT
        elif size < _MIN_LARGE:
            total = _LARGE_SEGMENT
        else:
            total = -(-size // _ROUND_LARGE) * _ROUND_LARGE
        if self._capacity is not None and self._reserved + total > self._capacity:
            self.empty_cache()
        self._reserved += total
        self._peak_reserved = max(self._peak_reserved, self._reserved)
        address, self._end = self._end, self._end + total + 1  # a gap: blocks are not joined over segments
        self._segments[address] = total
        return address, total


def _offer(pool: _Pool, size: int, address: int) -> None:
    """Puts a free block into its pool."""
    if size in pool.at:
        insort(pool.at[size], address)
    else:
        pool.at[size] = [address]
        insort(pool.sizes, size)


def _withdraw(pool: _Pool, size: int, address: int) -> None:
    """Takes a free block out of its pool."""
    same = pool.at[size]
    if len(same) > 1:
        same.remove(address)
    else:
        del pool.at[size]
        pool.sizes.remove(size)


def replay(allocator: CachingAllocator, timeline: Timeline, steps: int = 2, preloads: bool = False) -> None:
    """Runs a recorded step several times; what lives before the step is allocated once, as a run does it.

    Optimizer states are made by the first update. What the step frees of what lived before it (the batch, the last outputs)
    is taken anew before the next one. The cache is emptied where the record says so.

    Args:
        allocator: Takes the events.
        timeline: Of one step.
        steps: How often it is run.
        preloads: Whether the weights are loaded straight onto the device, into one block taken for all of them.
    """
    start = end_of_start(timeline)
    by_name = units(timeline.sizes)
    before, step = timeline.events[:start], timeline.events[start:]
    if preloads:
        sizes = timeline.sizes[before]
        allocator.preload(int(sizes[(timeline.parts[before] == _WEIGHTS) & (sizes > MIB)].sum()))
    made_later = (timeline.parts[before] == _OPTIMIZER) & updates(timeline)
    states = before[made_later]

    def run(names: np.ndarray, sizes: np.ndarray) -> None:
        allocator.run(names.tolist(), sizes.tolist())

    run(before[~made_later], by_name[before[~made_later]])
    names = np.where(step >= 0, step, ~step)
    sizes = np.where(step >= 0, by_name[names], 0)
    left = np.sort(np.setdiff1d(step[step >= 0], ~step[step < 0]))
    again = before[np.isin(before, ~step[step < 0])]
    for _ in range(steps):
        for moment, at, end in _stretches(timeline, start):
            if moment == BETWEEN:
                allocator.empty_cache()
            elif moment == "optimizer":
                run(states, by_name[states])
                states = states[:0]
            run(names[at - start : end - start], sizes[at - start : end - start])
        run(left, np.zeros_like(left))
        run(again, by_name[again])


def updates(timeline: Timeline) -> bool:
    """Whether the optimizer works in the step."""
    return any(moment == "optimizer" for _, moment in timeline.moments)


def _stretches(timeline: Timeline, start: int) -> Iterator[tuple[str, int, int]]:
    """(moment, index of its first event, end) of each moment of the step itself."""
    ends = [*(at for at, _ in timeline.moments[1:]), len(timeline.events)]
    for (at, moment), end in zip(timeline.moments, ends, strict=True):
        if at >= start:
            yield moment, at, end


def end_of_start(timeline: Timeline) -> int:
    """Index of the first event of the step itself."""
    return next((at for at, moment in timeline.moments if moment != "start"), len(timeline.events))
