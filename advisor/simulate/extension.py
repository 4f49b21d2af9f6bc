"""The exact extension of a shallow model's trace to every block: what a block that was left out allocates and frees is the
trace of the block that stands for it, with the block numbers moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunekit.advisor.simulate.answers import Cost
from tunekit.advisor.simulate.depth import DepthError, Stack, Timeline
from tunekit.advisor.simulate.trace import PARTS, Segment, Trace


def extend(trace: Trace, stacks: Sequence[Stack]) -> Timeline:
    """The timeline of the full model from the trace of the shallow one.

    Raises:
        DepthError: a block frees what its stand-in cannot name; the model has to be traced whole.
    """
    return _Extension(trace, stacks).timeline()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Template:
    """One shallow segment, ready to be repeated: its events as numbers, so that a block costs a few array operations."""

    events: np.ndarray
    """Ordinals within the segments of birth; their complements where something dies."""
    origin: np.ndarray
    """Of each event the segment of birth: 0 for this one, 1 and on as `frees` lists them."""
    sizes: np.ndarray
    """Bytes by ordinal."""
    parts: np.ndarray
    frees: tuple[tuple[int, int | None, np.ndarray, np.ndarray], ...]
    """(run of birth, blocks away or None for outside the blocks, ordinals there, bytes)."""
    every: tuple[tuple[int, int, tuple[int, ...], int, int], ...]
    """(where in `events`, run of birth, numbers of all blocks it was born in, ordinal there, bytes)."""


class _Extension:
    """One extension: walks the shallow segments in order and emits the full ones."""

    def __init__(self, trace: Trace, stacks: Sequence[Stack]) -> None:
        self._trace, self._stacks = trace, stacks
        self._events: list[np.ndarray] = []
        self._num_events = self._num_storages = 0
        self._sizes: list[np.ndarray] = []
        self._parts: list[np.ndarray] = []
        self._moments: list[tuple[int, str]] = []
        self._times: Counter[int] = Counter()
        self._checked: set[tuple[int, int, int]] = set()
        self._runs = _runs(trace.segments)
        self._run_of = {g: r for r, run in enumerate(self._runs) for g in run}
        # (run, number of the full block, or -1 for outside the blocks) -> first number born there, and the segment it repeats
        self._born: dict[tuple[int, int], tuple[int, int]] = {}
        self._copies = [[[k for k, t in enumerate(s.templates) if t == i] for i in range(len(s.kept))] for s in stacks]
        self._templates: dict[int, _Template] = {}

    def timeline(self) -> Timeline:
        for r, run in enumerate(self._runs):
            first = self._trace.segments[run[0]]
            if first.block is None:
                self._emit(run[0], r, None)
                continue
            stack = self._stacks[first.block[0]]
            segments = {self._short(g): g for g in run}
            self._check_run(segments, stack)
            for k in self._order(run, stack):
                g = segments.get(stack.templates[k])
                if g is None:
                    raise DepthError(f"no block stands for {k} of {stack.name} in {first.moment}")
                self._emit(g, r, k)
        events = _joined(self._events)
        if np.bincount(~events[events < 0]).max(initial=0) > 1:
            raise DepthError("freed twice")
        return Timeline(
            events=events,
            sizes=_joined(self._sizes),
            parts=_joined(self._parts),
            moments=tuple(self._moments),
            ops=self._ops(),
        )

    def _ops(self) -> tuple[tuple[str, Cost, int], ...]:
        ops: Counter[tuple[str, Cost]] = Counter()
        for g, times in self._times.items():
            segment = self._trace.segments[g]
            for cost, count in segment.ops.items():
                ops[segment.moment, cost] += times * count
        return tuple((moment, cost, count) for (moment, cost), count in ops.items())

    def _check_run(self, segments: dict[int, int], stack: Stack) -> None:
        """A stand-in for several blocks may only be repeated where its neighbours are visited too."""
        for i in segments:
            if stack.templates.count(i) > 1 and not {i - 1, i + 1} <= segments.keys():
                raise DepthError(f"block {i} of {stack.name} is visited without its neighbours")

    def _short(self, g: int) -> int:
        block = self._trace.segments[g].block
        assert block is not None
        return block[1]

    def _order(self, run: list[int], stack: Stack) -> range:
        first, last = stack.kept[self._short(run[0])], stack.kept[self._short(run[-1])]
        return range(first, last + 1) if last >= first else range(first, last - 1, -1)

    def _template(self, g: int) -> _Template:
        if g not in self._templates:
            self._templates[g] = self._made_ready(g)
        return self._templates[g]

    def _made_ready(self, g: int) -> _Template:
        trace, segment = self._trace, self._trace.segments[g]
        born = [e for e in segment.events if e >= 0]
        near: dict[tuple[int, int | None], list[tuple[int, int, int]]] = {}
        every: list[tuple[int, int, tuple[int, ...], int, int]] = []
        for at, event in enumerate(segment.events):
            if event >= 0:
                continue
            origin_segment, ordinal = trace.births[~event]
            origin, r, size = trace.segments[origin_segment].block, self._run_of[origin_segment], trace.sizes[~event]
            if origin is None:
                near.setdefault((r, None), []).append((at, ordinal, size))
            elif segment.block and origin[0] == segment.block[0] and abs(origin[1] - segment.block[1]) <= 1:
                near.setdefault((r, origin[1] - segment.block[1]), []).append((at, ordinal, size))
            else:
                every.append((at, r, tuple(self._copies[origin[0]][origin[1]]), ordinal, size))
        events = np.array(segment.events, dtype=np.int64)
        events[events >= 0] = np.arange(len(born))
        of, frees = np.zeros(len(events), dtype=np.int64), []
        for number, ((run, away), rows) in enumerate(near.items(), start=1):
            at, ordinals, sizes = np.array(rows, dtype=np.int64).T
            events[at], of[at] = ~ordinals, number
            frees.append((run, away, ordinals, sizes))
        return _Template(
            events=events,
            origin=of,
            sizes=np.array([trace.sizes[e] for e in born], dtype=np.int64),
            parts=np.array([PARTS.index(trace.parts[e]) for e in born], dtype=np.int64),
            frees=tuple(frees),
            every=tuple(every),
        )

    def _emit(self, g: int, r: int, k: int | None) -> None:
        segment, template = self._trace.segments[g], self._template(g)
        if not self._moments or self._moments[-1][1] != segment.moment:
            self._moments.append((self._num_events, segment.moment))
        self._times[g] += 1
        if (r, -1 if k is None else k) in self._born:
            raise DepthError("a block is visited twice in a row")
        self._born[r, -1 if k is None else k] = self._num_storages, g
        shifts = [self._num_storages]
        for number, (run, away, ordinals, sizes) in enumerate(template.frees):
            start, repeats = self._born.get((run, -1 if away is None else (k or 0) + away), (0, -1))
            if (g, number, repeats) not in self._checked:
                self._check(repeats, ordinals, sizes)
                self._checked.add((g, number, repeats))
            shifts.append(-start)
        events = template.events + np.array(shifts)[template.origin]
        if template.every:
            events = self._with_every(template, events)
        self._events.append(events)
        self._sizes.append(template.sizes)
        self._parts.append(template.parts)
        self._num_events += len(events)
        self._num_storages += len(template.sizes)

    def _with_every(self, template: _Template, events: np.ndarray) -> np.ndarray:
        """The events with the frees that stand for one in each of several blocks put in place of each."""
        pieces, done = [], 0
        for at, run, blocks, ordinal, size in template.every:
            pieces.append(events[done:at])
            for block in blocks:
                start, repeats = self._born.get((run, block), (0, -1))
                self._check(repeats, np.array([ordinal]), np.array([size]))
                pieces.append(np.array([~(start + ordinal)]))
            done = at + 1
        return np.concatenate([*pieces, events[done:]])

    def _check(self, g: int, ordinals: np.ndarray, sizes: np.ndarray) -> None:
        """Whether a segment bears what is freed: given by ordinals there, and the size that each must have."""
        born = self._templates[g].sizes if g >= 0 else sizes[:0]
        if ordinals.max() >= len(born) or not np.array_equal(born[ordinals], sizes):
            raise DepthError("a block does not repeat its stand-in")


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *pieces])


def _runs(segments: Sequence[Segment]) -> list[list[int]]:
    """Consecutive segments of one moment and stack whose blocks go steadily up or down; others by themselves."""
    runs: list[list[int]] = []
    step = 0
    for g, segment in enumerate(segments):
        previous = segments[runs[-1][-1]] if runs else None
        if (
            previous is not None
            and previous.block
            and segment.block
            and previous.moment == segment.moment
            and previous.block[0] == segment.block[0]
        ):
            move = segment.block[1] - previous.block[1]
            if abs(move) == 1 and (len(runs[-1]) == 1 or move == step):
                step = move
                runs[-1].append(g)
                continue
        runs.append([g])
    return runs
