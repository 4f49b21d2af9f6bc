"""PyTorch's caching allocator for CUDA, replayed without CUDA: what it reserves for a sequence of allocations.

Follows c10/cuda/CUDACachingAllocator.cpp with its default settings: sizes rounded to 512 bytes; requests up to 1 MiB from
segments of 2 MiB; up to 10 MiB from segments of 20 MiB; larger ones from segments of their own, rounded to 2 MiB; the
smallest free block that is large enough is taken and split; neighbours are joined when freed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunekit.advisor.simulate.loop import BETWEEN
from tunekit.advisor.simulate.trace import PARTS

if TYPE_CHECKING:
    from tunekit.advisor.simulate.depth import Timeline

KIB, MIB = 2**10, 2**20
_ROUND = 512
_SMALL = MIB
_SMALL_SEGMENT = 2 * MIB
_LARGE_SEGMENT = 20 * MIB
_MIN_LARGE = 10 * MIB
_ROUND_LARGE = 2 * MIB
_WEIGHTS, _OPTIMIZER = PARTS.index("weights"), PARTS.index("optimizer")


class _Block:
    """A piece of a segment; `key`, (bytes, address), orders free blocks."""

    __slots__ = ("after", "before", "free", "key", "small")

    def __init__(self, key: tuple[int, int], small: bool) -> None:
        self.key, self.small, self.free = key, small, False
        self.before: _Block | None = None
        self.after: _Block | None = None


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
        self._capacity = capacity
        self.allocated = self.reserved = 0
        self.peak_allocated = self.peak_reserved = 0
        self._pools: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._blocks: dict[int, _Block] = {}
        self._free: dict[int, _Block] = {}
        self._end = 0

    def allocate(self, name: int, num_bytes: int) -> None:
        """Takes `num_bytes` under a name that is not in use."""
        size = -(-num_bytes // _ROUND) * _ROUND or _ROUND
        small = size <= _SMALL
        pool = self._pools[small]
        at = bisect_left(pool, (size, -1))
        block = self._free.pop(pool.pop(at)[1]) if at < len(pool) else self._segment(size, small)
        block.free = False
        rest = block.key[0] - size
        if rest >= _ROUND if small else rest > _SMALL:
            self._split(block, size, rest)
        self._blocks[name] = block
        self.allocated += block.key[0]
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated

    def free(self, name: int) -> None:
        """Gives back what was taken under a name; joins free neighbours."""
        block = self._blocks.pop(name)
        self.allocated -= block.key[0]
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._withdraw(other)
                self._join(block, other)
        self._offer(block)

    def preload(self, num_bytes: int) -> None:
        """Takes and gives back one block, as transformers does before it loads weights onto a device."""
        self._offer(self._segment(max(num_bytes, _MIN_LARGE), small=False))

    def __contains__(self, name: int) -> bool:
        return name in self._blocks

    def names(self, start: int, end: int) -> list[int]:
        """What is alive of the names from `start` to before `end`, ascending."""
        return sorted(name for name in self._blocks if start <= name < end)

    def empty_cache(self) -> None:
        """Gives segments without any allocation back to the device."""
        for pool in self._pools.values():
            for size, address in list(pool):
                block = self._free[address]
                if block.before is None and block.after is None:
                    self._withdraw(block)
                    self.reserved -= size

    def _segment(self, size: int, small: bool) -> _Block:
        if small:
            total = _SMALL_SEGMENT
        elif size < _MIN_LARGE:
            total = _LARGE_SEGMENT
        else:
            total = -(-size // _ROUND_LARGE) * _ROUND_LARGE
        if self._capacity is not None and self.reserved + total > self._capacity:
            self.empty_cache()
        self.reserved += total
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        address, self._end = self._end, self._end + total
        return _Block((total, address), small)

    def _split(self, block: _Block, size: int, rest: int) -> None:
        address, after = block.key[1], block.after
        block.key = (size, address)
        remainder = _Block((rest, address + size), block.small)
        remainder.before, remainder.after = block, after
        if after is not None:
            after.before = remainder
        block.after = remainder
        self._offer(remainder)

    def _offer(self, block: _Block) -> None:
        block.free = True
        insort(self._pools[block.small], block.key)
        self._free[block.key[1]] = block

    def _withdraw(self, block: _Block) -> None:
        pool = self._pools[block.small]
        del pool[bisect_left(pool, block.key)]
        del self._free[block.key[1]]

    def _join(self, block: _Block, other: _Block) -> None:
        block.key = (block.key[0] + other.key[0], min(block.key[1], other.key[1]))
        if other is block.before:
            block.before = other.before
            if other.before is not None:
                other.before.after = block
        else:
            block.after = other.after
            if other.after is not None:
                other.after.before = block


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
    sizes, events, parts = timeline.sizes.tolist(), timeline.events.tolist(), timeline.parts.tolist()
    start = end_of_start(timeline)
    states = [e for e in events[:start] if parts[e] == _OPTIMIZER]
    if preloads:
        allocator.preload(sum(sizes[e] for e in events[:start] if parts[e] == _WEIGHTS and sizes[e] > _SMALL))
    if not any(moment == "optimizer" for _, moment in timeline.moments):
        states = []
    made_later = set(states)
    for event in events[:start]:
        if event not in made_later:
            allocator.allocate(event, sizes[event])
    step = timeline.events[start:]
    left = sorted(set(step[step >= 0].tolist()) - set((~step[step < 0]).tolist()))
    allocate, free = allocator.allocate, allocator.free
    for _ in range(steps):
        for moment, at, end in _stretches(timeline, start):
            if moment == BETWEEN:
                allocator.empty_cache()
            elif moment == "optimizer":
                for state in states:
                    allocator.allocate(state, sizes[state])
                states = []
            for event in events[at:end]:
                if event >= 0:
                    allocate(event, sizes[event])
                else:
                    free(~event)
        for name in left:
            free(name)
        for event in events[:start]:
            if event not in allocator:
                allocator.allocate(event, sizes[event])


def _stretches(timeline: Timeline, start: int) -> Iterator[tuple[str, int, int]]:
    """(moment, index of its first event, end) of each moment of the step itself."""
    ends = [*(at for at, _ in timeline.moments[1:]), len(timeline.events)]
    for (at, moment), end in zip(timeline.moments, ends, strict=True):
        if at >= start:
            yield moment, at, end


def end_of_start(timeline: Timeline) -> int:
    """Index of the first event of the step itself."""
    return next((at for at, moment in timeline.moments if moment != "start"), len(timeline.events))
