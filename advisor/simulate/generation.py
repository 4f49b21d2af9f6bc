"""Answers that are generated during an evaluation: keys and values that grow by a token at each pass."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tunekit.advisor.simulate.trace import GENERATION, NEXT_TOKEN

if TYPE_CHECKING:
    from tunekit.advisor.simulate.depth import Timeline

EVALUATED_ROWS, EVALUATED_TOKENS = 50, 160
"""Rows of a batch of PEFT's evaluation (`batch_size_eval`) and about the tokens of the longest question in one."""
ANSWER_TOKENS = 300
"""What it generates at most (`max_new_tokens` of its `generation_kwargs`); of 50 rows one always goes on to the end."""
_LARGE = 2**20
"""Smaller blocks come from a pool of their own, which they leave as they found it."""


def generated(timeline: Timeline, tokens: int = ANSWER_TOKENS) -> Timeline:
    """The timeline with the passes put in that follow the two recorded ones, each as the last one with a token more.

    What a pass takes is a straight line in the length that the cache holds. `DynamicLayer.update` in transformers'
    cache_utils.py joins the keys and values of a block with those of the new token by `torch.cat`: both are alive then.

    Args:
        timeline: Of a step with an evaluation after it.
        tokens: That are generated in all.
    """
    bounds = _bounds(timeline)
    if bounds is None:
        return timeline
    first, second = (timeline.events[a:b] for a, b in bounds)
    born = [e[e >= 0] for e in (first, second)]
    if len(born[0]) != len(born[1]):
        return timeline
    at = bounds[1][1]
    growth = timeline.sizes[born[1]] - timeline.sizes[born[0]]
    ordinal = {int(n): k for k, n in enumerate(born[1])} | {int(n): k - len(born[1]) for k, n in enumerate(born[0])}
    places = np.array([ordinal.get(int(e) if e >= 0 else int(~e), _ELSEWHERE) for e in second], dtype=np.int64)
    big = timeline.sizes[born[1]] + growth * tokens > _LARGE
    kept = (places != _ELSEWHERE) & big[places * (places != _ELSEWHERE)]
    signs, places = second[kept] >= 0, places[kept]
    count, start = len(born[1]), len(timeline.sizes)
    numbers = start + count * np.arange(tokens - 2)[:, None] + places[None, :]
    if tokens > 2:  # the first pass that is put in frees what the second recorded one made
        before = places < 0
        numbers[0, before] = born[1][places[before]]
    passes = np.where(signs[None, :], numbers, ~numbers).reshape(-1)
    sizes = timeline.sizes[born[1]][None, :] + growth[None, :] * np.arange(1, tokens - 1)[:, None]
    rest = _renamed(timeline.events[at:], born[1], start + count * (tokens - 3), big)
    return replace(
        timeline,
        events=np.concatenate([timeline.events[:at], passes, rest]),
        sizes=np.concatenate([timeline.sizes, sizes.reshape(-1)]),
        parts=np.concatenate([timeline.parts, np.tile(timeline.parts[born[1]], tokens - 2)]),
        moments=tuple((a if a < at else a + len(passes), moment) for a, moment in timeline.moments),
    )


_ELSEWHERE = 2**40


def _bounds(timeline: Timeline) -> list[tuple[int, int]] | None:
    """Where the events of the two recorded passes begin and end."""
    starts = [a for a, _ in timeline.moments] + [len(timeline.events)]
    names = [moment for _, moment in timeline.moments]
    if GENERATION not in names or NEXT_TOKEN not in names:
        return None
    return [(starts[i], starts[i + 1]) for i in (names.index(GENERATION), names.index(NEXT_TOKEN))]


def _renamed(events: np.ndarray, last: np.ndarray, start: int, big: np.ndarray) -> np.ndarray:
    """Events after the recorded passes: what they free of the second one is what the last one left."""
    names = {int(n): start + k for k, n in enumerate(last) if big[k]}
    return np.array([~names.get(int(~e), int(~e)) if e < 0 else e for e in events], dtype=np.int64)
