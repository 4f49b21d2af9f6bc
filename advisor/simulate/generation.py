"""Answers that are generated during an evaluation: keys and values that grow by a token at each pass."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tunekit.advisor.simulate.trace import PARTS

if TYPE_CHECKING:
    from tunekit.advisor.simulate.depth import Timeline
    from tunekit.plan import Plan

GENERATION = "generation"
"""The moment at which a record has made the first pass and goes on to generate."""
EVALUATED_ROWS, EVALUATED_TOKENS = 50, 160
"""Rows of a batch of PEFT's evaluation (`batch_size_eval`) and about the tokens of the longest question in one."""
ANSWER_TOKENS = 300
"""What it generates at most (`max_new_tokens` of its `generation_kwargs`); of 50 rows one always goes on to the end."""
_CACHE = PARTS.index("cache")


def generated(timeline: Timeline, length: int, tokens: int) -> Timeline:
    """The timeline with the passes after the first one put in where it says `generation`.

    At each pass every block makes keys and values that are one token longer and drops those it had
    (`DynamicLayer.update` in transformers' cache_utils.py joins them by `torch.cat`).

    Args:
        timeline: Of a step with an evaluation after it.
        length: Tokens that the cache holds after the first pass, virtual ones included.
        tokens: That are generated.
    """
    at = next((start for start, moment in timeline.moments if moment == GENERATION), None)
    if at is None:
        return timeline
    alive = _alive(timeline.events[:at])
    held = alive[timeline.parts[alive] == _CACHE]
    if not len(held):
        return timeline
    first, count = len(timeline.sizes), len(held)
    per_token = timeline.sizes[held] / length
    grown = np.concatenate([np.ceil(per_token * (length + k)) for k in range(1, tokens + 1)]).astype(np.int64)
    born = np.arange(first, first + len(grown), dtype=np.int64)
    dropped = np.concatenate([held, born])[: len(born)]
    passes = np.empty(2 * len(born), dtype=np.int64)
    passes[0::2], passes[1::2] = born, ~dropped
    last = born[-count:]
    rest = timeline.events[at:]
    rest = np.concatenate([~last, rest[~np.isin(rest, ~held)]])
    moved = len(passes)
    return replace(
        timeline,
        events=np.concatenate([timeline.events[:at], passes, rest]),
        sizes=np.concatenate([timeline.sizes, grown]),
        parts=np.concatenate([timeline.parts, np.full(len(grown), _CACHE)]),
        moments=tuple((start if start <= at else start + moved + count, moment) for start, moment in timeline.moments),
    )


def answered(timeline: Timeline, plan: Plan) -> Timeline:
    """The record of PEFT's evaluation with all the passes that its longest answers take."""
    prompt = getattr(plan.method, "config", None) or {
        "num_virtual_tokens": getattr(plan.method, "num_virtual_tokens", 0)
    }
    return generated(timeline, EVALUATED_TOKENS + int(prompt.get("num_virtual_tokens") or 0), ANSWER_TOKENS)


def _alive(events: np.ndarray) -> np.ndarray:
    """Numbers of what was born and not freed, in the order of birth."""
    born = events[events >= 0]
    return born[~np.isin(born, ~events[events < 0])]
