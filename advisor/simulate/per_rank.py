"""What sharing the work does to one rank's memory: DDP, ZeRO and FSDP, each as a change of the recorded step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tunekit.advisor.simulate.saving import saving_bytes
from tunekit.advisor.simulate.trace import PARTS
from tunekit.message_sizes import BUCKET_ELEMENTS
from tunekit.plan import Plan
from tunekit.sharding import zero_stage

if TYPE_CHECKING:
    from tunekit.advisor.simulate.depth import Timeline
    from tunekit.advisor.simulate.record import Recorded

_SHARDS: Mapping[str, frozenset[str]] = {
    "ddp": frozenset(),
    "zero1": frozenset({"optimizer"}),
    "zero2": frozenset({"optimizer", "gradients"}),
    "zero3": frozenset({"optimizer", "gradients", "weights", "adapters"}),
    "fsdp": frozenset({"optimizer", "gradients", "weights", "adapters"}),
    "fsdp-hybrid": frozenset({"optimizer", "gradients", "weights", "adapters"}),
}
"""Parts that each form of sharding divides by the ranks (Rajbhandari et al., ZeRO, 2020; Zhao et al., FSDP, 2023)."""
_GATHERS = ("zero3", "fsdp", "fsdp-hybrid")
"""Forms that divide the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PerRank:
    """One rank's share of a step."""

    timeline: Timeline
    fixed: Mapping[str, int]
    """Bytes by part that live through the whole step beside the timeline."""
    reasons: tuple[str, ...]


def per_rank(recorded: Recorded, plan: Plan) -> PerRank:
    """The step as one rank sees it."""
    if plan.sharding is None:
        return PerRank(timeline=recorded.timeline, fixed={}, reasons=())
    divided = _SHARDS[plan.sharding]
    ranks = plan.num_processes // (plan.num_machines if plan.sharding == "fsdp-hybrid" else 1)
    gone = {"optimizer": {"optimizer"}, "parameters": {"optimizer", "weights", "adapters"}}.get(
        plan.offload or "", set()
    )
    factors = np.ones(len(PARTS))
    for i, part in enumerate(PARTS):
        factors[i] = 0.0 if part in gone else 1 / ranks if part in divided else 1.0
    if zero_half(plan):
        factors[PARTS.index("optimizer")] *= 2  # recorded for 16-bit parameters, kept in 32 bits
    by_storage = factors[recorded.timeline.parts]
    # what the update takes beside its states is as large as what it updates: a rank's share, on the host where that lies there
    by_storage[_made_in_update(recorded.timeline)] = factors[PARTS.index("optimizer")]
    timeline = _scaled(recorded.timeline, by_storage)
    fixed, reasons = _communication(recorded, plan)
    if plan.sharding in _GATHERS:
        timeline = _with_gathered(timeline, _gathered_bytes(recorded, plan))
    if zero_stage(plan) and not plan.offload:
        fixed["optimizer copies"] = -(-4 * recorded.trainable_parameters // ranks)
        timeline = _with_flat_gradient(timeline, fixed["optimizer copies"])
        reasons = (
            *reasons,
            "DeepSpeed keeps a 32-bit copy of what learns, divided by the ranks, and one of its gradient in the update",
        )
    shared = ", ".join(p for p in PARTS if p in divided)
    reasons = (
        *reasons,
        f"{plan.sharding} over {ranks} ranks divides {shared}" if shared else "every rank holds a whole copy",
        *_host(recorded, plan),
        *_saving(recorded, plan),
    )
    return PerRank(timeline=timeline, fixed=fixed, reasons=reasons)


def zero_half(plan: Plan) -> str | None:
    """The 16-bit dtype that DeepSpeed turns the whole model into under mixed precision; None where it does not."""
    return (
        {"bf16": "bfloat16", "fp16": "float16"}[plan.mixed_precision]
        if zero_stage(plan) and plan.mixed_precision
        else None
    )


def host_bytes(recorded: Recorded, plan: Plan) -> int:
    """What offloading takes of one machine's memory: 32-bit copies, their gradients and two states, and the weights too.

    Sixteen bytes a trainable parameter (`estimate_zero2_model_states_mem_needs` in DeepSpeed, without its reserve).
    """
    if plan.offload is None or plan.offload_to != "cpu":
        return 0
    weights = _part_bytes(recorded.timeline, ("weights", "adapters")) if plan.offload == "parameters" else 0
    return (16 * recorded.trainable_parameters + weights) // plan.num_machines


def _host(recorded: Recorded, plan: Plan) -> tuple[str, ...]:
    size = host_bytes(recorded, plan)
    return (f"offloading takes {size / 2**30:.1f} GiB of each machine's memory",) if size else ()


def _saving(recorded: Recorded, plan: Plan) -> tuple[str, ...]:
    size = saving_bytes(recorded, plan)
    return (f"saving takes {size / 2**30:.1f} GiB of the first rank's host memory",) if size else ()


def _scaled(timeline: Timeline, by_storage: np.ndarray) -> Timeline:
    return replace(timeline, sizes=np.ceil(timeline.sizes * by_storage).astype(np.int64))


def _update(timeline: Timeline) -> tuple[int, int] | None:
    """Where the events of the optimizer's update begin and end."""
    starts = [*timeline.moments, (len(timeline.events), "")]
    spans = [(a, b) for (a, moment), (b, _) in pairwise(starts) if moment == "optimizer"]
    return spans[-1] if spans else None


def _made_in_update(timeline: Timeline) -> np.ndarray:
    """Storages that are born in the update."""
    begin, end = _update(timeline) or (0, 0)
    events = timeline.events[begin:end]
    born: np.ndarray = events[events >= 0]
    return born


def _with_flat_gradient(timeline: Timeline, num_bytes: int) -> Timeline:
    """The timeline with a rank's gradient once more while the optimizer works: DeepSpeed lays it flat in 32 bits beside the parts it
    was summed up in (`_prepare_fp32_grad_for_sub_group` in stage3.py, `single_grad_partition` in stage_1_and_2.py)."""
    span = _update(timeline)
    if span is None or not num_bytes:
        return timeline
    (begin, end), name = span, len(timeline.sizes)
    events = timeline.events
    return replace(
        timeline,
        events=np.concatenate([events[:begin], [name], events[begin:end], [~name], events[end:]]),
        sizes=np.append(timeline.sizes, num_bytes),
        parts=np.append(timeline.parts, PARTS.index("gradients")),
        moments=tuple((a + (a > begin) + (a >= end), moment) for a, moment in timeline.moments),
    )


def _communication(recorded: Recorded, plan: Plan) -> tuple[dict[str, int], tuple[str, ...]]:
    """Buffers for messages: DDP's buckets hold every gradient once more; DeepSpeed's are of a size of their own, twice where
    sending overlaps with work."""
    size = 2 if zero_half(plan) else max(1, recorded.trainable_bytes // max(1, recorded.trainable_parameters))
    bucket = size * min(BUCKET_ELEMENTS, recorded.trainable_parameters)
    if plan.sharding == "ddp":
        # torch DDP keeps gradients in buckets beside `.grad` (gradient_as_bucket_view is off by default).
        return {"communication": recorded.trainable_bytes}, (
            "gradients are held once more in buckets for the exchange",
        )
    if plan.sharding in ("zero1", "zero2"):
        return {"communication": 2 * bucket}, ("gradients are sent and weights gathered in buckets",)
    buckets = {"communication": 2 * bucket} if plan.sharding == "zero3" else {}
    return buckets, ("weights are gathered a block at a time, one ahead",)


def _gathered_bytes(recorded: Recorded, plan: Plan) -> int:
    """Weights that are whole at once: two blocks. DeepSpeed cuts what it fetched at once out of one tensor, which lives beside it
    (`_all_gather_coalesced` in partition_parameters.py)."""
    weights = _part_bytes(recorded.timeline, ("weights", "adapters"))
    gathered = min(weights, 2 * _largest(recorded))
    bucket = weights * BUCKET_ELEMENTS // max(1, recorded.total_parameters)
    return gathered + (min(gathered // 2, bucket) if plan.sharding == "zero3" else 0)


def _with_gathered(timeline: Timeline, num_bytes: int) -> Timeline:
    """The timeline with gathered weights: from the step's beginning to the update, which finds all of them divided again."""
    name, begin = len(timeline.sizes), (_update(timeline) or (len(timeline.events), 0))[0]
    start = next((at for at, moment in timeline.moments if moment != "start"), begin)
    events = timeline.events
    return replace(
        timeline,
        events=np.concatenate([events[:start], [name], events[start:begin], [~name], events[begin:]]),
        sizes=np.append(timeline.sizes, num_bytes),
        parts=np.append(timeline.parts, PARTS.index("communication")),
        moments=tuple((a + (a > start) + (a >= begin), moment) for a, moment in timeline.moments),
    )


def _part_bytes(timeline: Timeline, parts: tuple[str, ...]) -> int:
    chosen = np.isin(timeline.parts, [PARTS.index(p) for p in parts])
    return int(timeline.sizes[chosen].sum())


def _largest(recorded: Recorded) -> int:
    """Bytes of the largest thing gathered at once: a block, or a vocabulary's table, which stands alone."""
    timeline = recorded.timeline
    chosen = np.isin(timeline.parts, [PARTS.index("weights"), PARTS.index("adapters")])
    return max(recorded.block_bytes, int(timeline.sizes[chosen].max(initial=0)))
