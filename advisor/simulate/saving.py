"""What a checkpoint and a merge take beside a step: the whole weights, where a step holds a share of them or packed ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tunekit.advisor.simulate.trace import PARTS

if TYPE_CHECKING:
    from tunekit.advisor.simulate.depth import Timeline
    from tunekit.advisor.simulate.record import Recorded
    from tunekit.plan import Plan

SAVING = "saving"
"""The moment at which a checkpoint is written."""
_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def saving_bytes(recorded: Recorded, plan: Plan) -> int:
    """What saving takes of the first rank's host memory: the whole weights, gathered a module at a time.

    On a card it takes the weights of one module, where a step gathers two blocks, so that it is no peak there (DeepSpeed's
    `_zero3_consolidated_16bit_state_dict`, FSDP's full state dictionary, offloaded on rank 0). Of a PEFT model the Trainer
    gathers only what learns, under ZeRO-3 (`Trainer.save_model`).
    """
    if plan.sharding not in ("zero3", "fsdp", "fsdp-hybrid"):
        return 0
    adapters_alone = recorded.wrapped and plan.sharding == "zero3"
    return _part_bytes(recorded.timeline, ("adapters",) if adapters_alone else ("weights", "adapters"))


def merging_bytes(recorded: Recorded, plan: Plan) -> int:
    """What `tunekit.merge` takes of the host's memory: the base as it was published, and what was learnt; 0 where nothing merges."""
    if plan.method.trains_base or not plan.method.merges:
        return 0
    size = _VALUE_BYTES[plan.dtype]
    return recorded.total_parameters * size + _part_bytes(recorded.timeline, ("adapters",))


def saved(timeline: Timeline, num_bytes: int) -> Timeline:
    """The timeline with a checkpoint after the step, on a device that is the host itself: nothing else of the step is alive then."""
    name = len(timeline.sizes)
    return replace(
        timeline,
        events=np.concatenate([timeline.events, [name, ~name]]),
        sizes=np.append(timeline.sizes, num_bytes),
        parts=np.append(timeline.parts, PARTS.index("weights")),
        moments=(*timeline.moments, (len(timeline.events), SAVING)),
    )


def _part_bytes(timeline: Timeline, parts: tuple[str, ...]) -> int:
    chosen = np.isin(timeline.parts, [PARTS.index(p) for p in parts])
    return int(timeline.sizes[chosen].sum())
