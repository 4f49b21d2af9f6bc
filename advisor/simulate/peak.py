"""The moment at which most is alive, and what it is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tunekit.advisor.simulate.trace import PARTS

if TYPE_CHECKING:
    from tunekit.advisor.simulate.depth import Timeline


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The fullest moment of a timeline."""

    num_bytes: int
    parts: Mapping[str, int]
    """Bytes alive then, by part; they sum to `num_bytes`."""
    moment: str


def rounded(timeline: Timeline, grain: int) -> Timeline:
    """The timeline with every size rounded up to multiples of `grain` bytes, as allocators do."""
    return replace(timeline, sizes=-(-timeline.sizes // grain) * grain)


def peak(timeline: Timeline, grain: int = 1) -> Peak:
    """The fullest moment.

    Args:
        timeline: Of one step.
        grain: Bytes that sizes are rounded up to.
    """
    sizes = rounded(timeline, grain).sizes
    born = timeline.events >= 0
    names = np.where(born, timeline.events, ~timeline.events)
    change = np.where(born, sizes[names], -sizes[names])
    at = int(np.argmax(np.cumsum(change)))
    sums = np.zeros(len(PARTS), dtype=np.int64)
    np.add.at(sums, timeline.parts[names[: at + 1]], change[: at + 1])
    starts = [start for start, _ in timeline.moments]
    moment = timeline.moments[bisect_right(starts, at) - 1][1]
    parts = {name: int(n) for name, n in zip(PARTS, sums, strict=True) if n}
    return Peak(num_bytes=int(sums.sum()), parts=parts, moment=moment)
