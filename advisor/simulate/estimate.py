"""A plan's peak memory and duration, put together from the recorded step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunekit.advisor.simulate.card import device_bytes, spread
from tunekit.advisor.simulate.held import Held, held
from tunekit.advisor.simulate.question import Question
from tunekit.calibration import corrected_memory
from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.plan import Plan
from tunekit.workload import DataFacts, Hardware, ModelFacts, Workload

if TYPE_CHECKING:
    from tunekit.advisor.simulate.collated import Shape
    from tunekit.advisor.simulate.loop import Loop

_COARSE_SPREAD = (0.5, 2.0)
_MISSING_SPREAD = 1.5
"""How far above what is told the peak may lie where a part of the run could not be traced."""
_VARYING = "batches of varying length: where there is room PyTorch's allocator keeps more than it needs, and gives it back when there is none"


def simulate(workload: Workload, plan: Plan, loop: Loop = "trainer") -> tuple[MemoryEstimate, TimeEstimate]:
    """Peak memory of one device and duration of the run under a plan, for a workload.

    Never raises for a model that cannot be traced: the estimates are then coarse, say so, and have wide bounds.

    Args:
        workload: Model, data and hardware.
        plan: How it is trained.
        loop: `trainer`, or `peft-benchmark` for PEFT's published runs.
    """
    memory = estimate_memory(plan, workload.hardware, workload.data, loop, workload.model, replays=False)
    return memory, estimate_time(plan, workload.hardware, workload.data, workload.model, loop)


def estimate_memory(
    plan: Plan,
    hardware: Hardware,
    data: DataFacts | None = None,
    loop: Loop = "trainer",
    model: ModelFacts | None = None,
    replays: bool = True,
) -> MemoryEstimate:
    """Peak memory of one device under a plan, from one training step traced on weightless tensors.

    Args:
        plan: How it is trained.
        hardware: The devices.
        data: None: every row is `max_length` long.
        loop: `trainer`, or `peft-benchmark`.
        model: None: read from the plan's `model`.
        replays: Whether batches as long as the data has them are replayed one after the other, so that what is reserved is
            what the whole run reserves; without, it is what its longest batches do.
    """
    from tunekit.advisor.simulate.coarse import coarse_memory

    asked = Question(plan=plan, hardware=hardware, data=data, model=model or _facts(plan), loop=loop)
    shape = asked.batches().longest
    try:
        return _traced(asked, shape, replays)
    except Exception as e:  # whatever a model's code may raise on tensors without values
        return coarse_memory(plan, hardware, asked.model, shape, device_bytes, _COARSE_SPREAD, _short(e))


def estimate_time(
    plan: Plan,
    hardware: Hardware,
    data: DataFacts | None = None,
    model: ModelFacts | None = None,
    loop: Loop = "trainer",
) -> TimeEstimate:
    """Duration of a plan's run: every op of the recorded step at the average padded length, through a roofline.

    Args: as `estimate_memory`.
    """
    from tunekit.advisor.simulate.duration import duration

    return duration(Question(plan=plan, hardware=hardware, data=data, model=model or _facts(plan), loop=loop))


def screen(plan: Plan, hardware: Hardware, data: DataFacts | None, model: ModelFacts) -> dict[str, Any]:
    """What can be told of a plan without replaying the allocator: `least_bytes` of the device and about the `seconds`.

    A method that trains little is taken to accumulate gradients even where it takes the whole batch at once, so that one
    record serves every micro-batch. Where the step cannot be traced, `least_bytes` is 0.
    """
    from tunekit.advisor.simulate.duration import duration

    micro, parts = plan.per_device_train_batch_size, plan.gradient_accumulation_steps
    accumulates = parts > 1 or (not plan.method.trains_base and micro > 1)
    asked = Question(plan=plan, hardware=hardware, data=data, model=model, accumulates=accumulates)
    shape = asked.batches().longest
    seconds = duration(asked).total_seconds
    try:
        allocated = held(asked, shape).allocated_bytes
    except Exception:
        return {"least_bytes": 0, "seconds": seconds}
    least = int(device_bytes(hardware, allocated, asked.launched) * spread(hardware, shape)[1])
    return {"least_bytes": least, "seconds": seconds}


def needed_bytes(plan: Plan, hardware: Hardware, data: DataFacts | None, model: ModelFacts) -> int | None:
    """What tensors alone need of a device at the fullest moment; None where the step cannot be traced."""
    asked = Question(plan=plan, hardware=hardware, data=data, model=model)
    try:
        return held(asked, asked.batches().longest).allocated_bytes
    except Exception:
        return None


def _traced(asked: Question, shape: Shape, replays: bool) -> MemoryEstimate:
    from tunekit.advisor.simulate.kept import store_of
    from tunekit.advisor.simulate.reserved import reserved

    fullest = held(asked, shape)
    recorded, held_back = fullest.recorded, reserved(asked, shape, fullest, replays)
    low, high = spread(asked.hardware, shape)
    high *= _MISSING_SPREAD if held_back.missing else 1
    needed, device = (
        device_bytes(asked.hardware, n, asked.launched) for n in (held_back.needed_bytes, held_back.num_bytes)
    )
    store = store_of(asked, recorded)
    found = MemoryEstimate(
        parts=fullest.parts,
        allocated_bytes=fullest.allocated_bytes,
        reserved_bytes=held_back.num_bytes,
        device_bytes=device,
        interval=(int(needed * low), max(device, int(needed * high))),
        moment=held_back.moment,
        reserved_moment=held_back.where,
        reasons=(
            *recorded.assumed,
            *fullest.share.reasons,
            _length_reason(shape, asked.data),
            *held_back.reasons,
            *([fullest.why] if fullest.why else ()),
            *([store.reason()] if store else ()),
            *_merging(asked, fullest),
            *([_VARYING] if asked.cuda and shape.padded else ()),
        ),
        trainable_parameters=recorded.trainable_parameters,
        total_parameters=recorded.total_parameters,
    )
    return corrected_memory(found, asked.hardware)


def _merging(asked: Question, fullest: Held) -> tuple[str, ...]:
    """What a merge afterwards takes, where that is more than the training."""
    from tunekit.advisor.simulate.saving import merging_bytes

    size = merging_bytes(fullest.recorded, asked.plan)
    more = size > fullest.allocated_bytes
    return (
        (f"merging afterwards takes more than training: {size / 2**30:.1f} GiB of the host's memory",) if more else ()
    )


def _length_reason(shape: Shape, data: DataFacts | None) -> str:
    known = "the longest row" if data is not None and data.lengths else "every row at the longest length"
    return f"a batch of {shape.batch} rows of {shape.length} tokens ({known})"


def _facts(plan: Plan) -> ModelFacts:
    from tunekit.advisor.observe.model import model_facts

    return model_facts(plan.model, plan.revision)


def _short(e: Exception) -> str:
    return " ".join(f"{type(e).__name__}: {e}".split())[:200]
