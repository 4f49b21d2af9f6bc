"""The store of what the frozen layers say (`frozen_activations: cached`): its size, where it lies, and the pass that fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from tunekit.activation_store import MEMORY_SHARE, in_words
from tunekit.advisor.simulate.question import Question
from tunekit.advisor.simulate.trace import PARTS

if TYPE_CHECKING:
    from tunekit.advisor.simulate.batches import Batches
    from tunekit.advisor.simulate.collated import Shape
    from tunekit.advisor.simulate.depth import Timeline
    from tunekit.advisor.simulate.record import Recorded

STORE = "frozen activations"
"""What the store is called among the parts."""
_WEIGHTS = [PARTS.index("weights"), PARTS.index("adapters")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """Answers of the frozen layers to every row of training and evaluation."""

    layers: int
    token_bytes: int
    tokens: int | None
    """None: the number of rows is not known."""
    room: int | None
    """Bytes of host memory that it may take; what is larger goes into a file. None: the host's memory is not known."""

    @property
    def num_bytes(self) -> int:
        return self.token_bytes * (self.tokens or 0)

    @property
    def in_file(self) -> bool:
        return self.room is not None and self.num_bytes > self.room

    def reason(self) -> str:
        """Its size and place in words."""
        what = f"what the {self.layers} frozen layers say is kept, {self.token_bytes:,} bytes a token"
        if self.tokens is None:
            return f"{what}: how many tokens there are is not known"
        if self.room is None:
            where = f"of the host's memory, or a file where that is more than {MEMORY_SHARE:.0%} of what is free"
        else:
            where = "in a file, since the host's memory has no room for it" if self.in_file else "of the host's memory"
        return f"{what}: {in_words(self.num_bytes)} {where}"


def store_of(asked: Question, recorded: Recorded) -> Store | None:
    """The store of a run; None where nothing is kept."""
    if recorded.kept is None:
        return None
    rows, memory = rows_kept(asked), asked.hardware.host_memory_bytes
    if not asked.cuda:
        memory = (memory or asked.hardware.memory_bytes) - weight_bytes(recorded.timeline)
    return Store(
        layers=recorded.kept.layers, token_bytes=recorded.kept.token_bytes,
        tokens=round(rows * asked.batches().mean_tokens) if rows else None,
        room=None if memory is None else int(MEMORY_SHARE * memory),
    )  # fmt: skip


def in_memory(asked: Question, recorded: Recorded) -> Mapping[str, int]:
    """What it takes of the memory that is asked about: all of it on the CPU, unless it goes into a file."""
    store = store_of(asked, recorded)
    if store is None or asked.cuda or store.in_file or not store.num_bytes:
        return {}
    return {STORE: store.num_bytes}


def rows_kept(asked: Question) -> int:
    """Rows of training and evaluation; 0 where they are not known."""
    return asked.data.num_examples + asked.data.num_eval_examples if asked.data is not None else 0


def filling_timeline(asked: Question, shape: Shape, recorded: Recorded) -> Timeline:
    """A batch of the pass that fills the store, with the weights of the layers above, which lie there too."""
    assert recorded.kept is not None
    rows = asked.plan.per_device_eval_batch_size
    timeline = asked.filling(replace(shape, batch=rows, supervised=1.0), recorded.kept.layers)
    above = weight_bytes(recorded.timeline) - weight_bytes(timeline)
    name = len(timeline.sizes)
    return replace(
        timeline,
        events=np.concatenate([[name], timeline.events]),
        sizes=np.append(timeline.sizes, max(0, above)),
        parts=np.append(timeline.parts, _WEIGHTS[0]),
        moments=tuple((at + (at > 0), moment) for at, moment in timeline.moments),
    )


def num_filling_batches(asked: Question) -> int:
    """Batches of the pass that fills the store; 0 where the number of rows is not known."""
    return ceil(rows_kept(asked) / asked.plan.per_device_eval_batch_size)


def mean_share(shapes: Batches) -> float:
    """The mean length over the longest: rows go through in batches of like length."""
    return min(1.0, shapes.mean_tokens / (shapes.longest.length * shapes.longest.choices))


def weight_bytes(timeline: Timeline) -> int:
    """What all weights take."""
    return int(timeline.sizes[np.isin(timeline.parts, _WEIGHTS)].sum())
