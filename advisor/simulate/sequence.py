"""A run replayed: steps of batches as long as they come, one after the other through one allocator, evaluations between them.

A step is recorded at two lengths. Between them every size is a straight line in the length (the square of it, as of attention
scores, lies below the line), so that a step of any length costs no further record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tunekit.advisor.simulate.allocator import CachingAllocator, end_of_start, units, updates
from tunekit.advisor.simulate.trace import PARTS

if TYPE_CHECKING:
    from tunekit.advisor.simulate.depth import Timeline

_LARGE = 2**20
"""Smaller blocks come from a pool of their own, which two steps fill and later ones leave as it is."""
_WEIGHTS, _OPTIMIZER = PARTS.index("weights"), PARTS.index("optimizer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cycle:
    """A step as it is repeated: what it takes and gives back, by ordinal."""

    born: np.ndarray
    """Whether an event takes (or gives back)."""
    places: np.ndarray
    """Ordinal of what is taken or given back; negative ones, counted from the end, are of the step before."""
    sizes: np.ndarray
    """Bytes by ordinal, at `length`."""
    slopes: np.ndarray
    """Bytes that each token of the length adds, by ordinal."""
    length: int
    moments: tuple[tuple[int, str], ...]
    """(index of the first event, moment), ascending."""
    leaves: bool
    """Whether what is alive at the end lives on into the next step."""

    def at(self, length: int) -> np.ndarray:
        """Bytes by ordinal of a step of another length."""
        return np.maximum(np.round(self.sizes + self.slopes * (length - self.length)), 1).astype(np.int64)


class CycleError(Exception):
    """Two recorded steps that do not take and give back alike, so that no step between them can be told."""


def cycle(long: Timeline, short: Timeline, lengths: tuple[int, int]) -> Cycle:
    """The step that was recorded twice, from records of whole steps.

    Args:
        long: The longer one.
        short: Another one of the same plan.
        lengths: Theirs.

    Raises:
        CycleError: their events differ.
    """
    start = end_of_start(long)
    events, others = long.events[start:], short.events[end_of_start(short) :]
    names, same = events[events >= 0], others[others >= 0]
    if len(names) != len(same) or not np.array_equal(long.parts[names], short.parts[same]):
        raise CycleError(
            "other events at another length"
        )  # the order in which things die may differ, not that of their birth
    slope = (long.sizes[names] - short.sizes[same]) / (lengths[0] - lengths[1] or 1)
    return _cycle(events, names, names[:0], long, slope, lengths[0], start, leaves=False)


def crossing(timeline: Timeline, bounds: tuple[int, int, int], lengths: tuple[int, int]) -> Cycle:
    """The step that a record holds twice, of which the second gives back what the first left.

    Args:
        timeline: The record.
        bounds: Where the first begins, the second, and what follows.
        lengths: Of the second and of the first.

    Raises:
        CycleError: the two differ.
    """
    first, second = timeline.events[bounds[0] : bounds[1]], timeline.events[bounds[1] : bounds[2]]
    names, before = second[second >= 0], first[first >= 0]
    before = before[np.isin(before, ~timeline.events[timeline.events < 0])]  # what is met for the first time stays
    if len(names) != len(before):
        raise CycleError("the second step takes other things than the first")
    slope = (timeline.sizes[names] - timeline.sizes[before]) / (lengths[0] - lengths[1] or 1)
    return _cycle(second, names, before, timeline, slope, lengths[0], bounds[1], leaves=True)


def _cycle(
    events: np.ndarray,
    names: np.ndarray,
    before: np.ndarray,
    timeline: Timeline,
    slopes: np.ndarray,
    length: int,
    start: int,
    leaves: bool,
) -> Cycle:
    """Events by ordinal; what was there before the step is left as it is."""
    unknown = 2**40
    ordinal = np.full(len(timeline.sizes), unknown, dtype=np.int64)
    ordinal[before] = np.arange(len(before)) - len(before)
    ordinal[names] = np.arange(len(names))
    places = ordinal[np.where(events >= 0, events, ~events)]
    kept = places != unknown
    shift = np.concatenate([[0], np.cumsum(kept)])
    moments = tuple((int(shift[a - start]), m) for a, m in timeline.moments if start <= a < start + len(events))
    return Cycle(
        born=(events >= 0)[kept], places=places[kept], sizes=timeline.sizes[names], slopes=slopes, length=length,
        moments=moments, leaves=leaves,
    )  # fmt: skip


class Replay:
    """An allocator that a run goes through; remembers when it held most.

    Args:
        timeline: A record whose beginning is alive throughout.
        fixed: Bytes that the device's libraries and messages take.
        preloads: Whether the weights are loaded straight onto the device, into one block taken for all of them.
        capacity: Bytes at which the device is full, so that cached blocks are given back; None: none is.
    """

    def __init__(
        self, timeline: Timeline, fixed: Iterable[int] = (), preloads: bool = False, capacity: int | None = None
    ) -> None:
        self.allocator = CachingAllocator(capacity)
        self.allocated_at = self.reserved_at = ""
        self.steps = 0
        self._names = len(timeline.sizes)
        self._most = (0, 0)
        for name, size in enumerate(fixed, start=1):
            self.allocator.allocate(-name, size)
        start, sizes = timeline.events[: end_of_start(timeline)], timeline.sizes
        if preloads:
            weights = sizes[start[timeline.parts[start] == _WEIGHTS]]
            self.allocator.preload(int(weights[weights > _LARGE].sum()))
        made_later = (timeline.parts[start] == _OPTIMIZER) & updates(timeline)
        self._states = start[made_later], sizes[start[made_later]]
        self._take(start[~made_later], sizes[start[~made_later]])

    def step(self, cycle: Cycle, length: int, number: int | None = None) -> None:
        """Takes a step of a length; `number` is what it is called."""
        self.steps += 1
        called = number or self.steps
        sizes, count = cycle.at(length), len(cycle.sizes)
        first, names = self.steps == 1, self._names + self.steps * count + cycle.places
        kept = (cycle.places >= 0) | (not first and cycle.leaves)
        if self.steps > 2:
            kept &= cycle.sizes[cycle.places] > _LARGE
        sizes = np.where(cycle.born, units(sizes[cycle.places]), 0)
        ends = [*(a for a, _ in cycle.moments[1:]), len(names)]
        for (at, moment), end in zip(cycle.moments, ends, strict=True):
            if moment == "optimizer":
                self._take(*self._states)
                self._states = self._states[0][:0], self._states[1][:0]
            here = kept[at:end]
            self.allocator.run(names[at:end][here].tolist(), sizes[at:end][here].tolist())
            self._look(f"step {called}, {moment}")
        if not cycle.leaves:
            self.allocator.free_between(self._names + self.steps * count, self._names + (self.steps + 1) * count)

    def _take(self, names: np.ndarray, num_bytes: np.ndarray) -> None:
        self.allocator.run(names.tolist(), units(num_bytes).tolist())

    def once(self, events: np.ndarray, sizes: np.ndarray, moment: str) -> None:
        """Events of something that leaves nothing behind, such as an evaluation; frees of what was there before are left out."""
        born = events >= 0
        names = np.where(born, events, ~events)
        own = np.isin(names, events[born])
        start = self._names + (self.steps + 2) * 2**32
        self.allocator.run((start + names[own]).tolist(), np.where(born, units(sizes[names]), 0)[own].tolist())
        self._look(moment)
        self.allocator.free_between(start, start + len(sizes))

    def _look(self, at: str) -> None:
        now = self.allocator.peak_allocated, self.allocator.peak_reserved
        if now[0] > self._most[0]:
            self.allocated_at = at
        if now[1] > self._most[1]:
            self.reserved_at = at
        self._most = now
