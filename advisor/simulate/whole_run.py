"""A whole run through the allocator: its batches in their order, and an evaluation after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tunekit.advisor.simulate.allocator import end_of_start
from tunekit.advisor.simulate.run_lengths import Order, padded_lengths, telling
from tunekit.advisor.simulate.sequence import CycleError, Replay, cycle

if TYPE_CHECKING:
    from tunekit.advisor.simulate.collated import Shape
    from tunekit.advisor.simulate.depth import Timeline
    from tunekit.plan import Plan
    from tunekit.workload import DataFacts


def replayed(
    plan: Plan,
    data: DataFacts | None,
    shape: Shape,
    timeline_of: Callable[[Shape], Timeline],
    pieces: Sequence[int],
    capacity: int | None = None,
    evaluated: Timeline | None = None,
    order: Order = "grouped",
) -> Replay | None:
    """The run's batches one after the other; None where they are all of a length, or their lengths are not known.

    Args:
        plan: How it is trained.
        data: With the lengths of its rows.
        shape: Of the longest batch.
        timeline_of: A recorded step of a shape.
        pieces: Bytes that live beside the tensors.
        capacity: Bytes that the device has for tensors; None: any.
        evaluated: The pass of an evaluation that takes more than a step.
        order: In which the rows come.
    """
    from dataclasses import replace

    if data is None or not data.lengths or not shape.padded or plan.packing or shape.target_length:
        return None
    lengths = np.minimum(data.lengths, shape.length)
    padded = padded_lengths(lengths, shape.batch, order, plan.effective_batch_size, data.num_examples, plan.seed)
    # kernels align to eight: the other record differs by a multiple of it, so that it holds the same events
    shortest = shape.length - 8 * ((shape.length - int(padded.min())) // 8)
    if shortest == shape.length:
        return None
    longest = timeline_of(shape)
    try:
        step = cycle(longest, timeline_of(replace(shape, length=shortest)), (shape.length, shortest))
    except CycleError:
        return None
    run = Replay(longest, pieces, plan.quantization is not None, capacity)
    for number, length in telling(padded):
        run.step(step, length, number)
    if evaluated is not None:
        run.once(evaluated.events[end_of_start(evaluated) :], evaluated.sizes, "evaluation")
    return run
