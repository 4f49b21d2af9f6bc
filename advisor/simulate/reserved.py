"""What PyTorch's allocator holds where it holds most: in the steps, in the run's order of lengths, in evaluations, at loading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunekit.advisor.simulate.card import HEAP_SHARE, device_bytes
from tunekit.advisor.simulate.held import Held, held_in
from tunekit.advisor.simulate.kept import STORE
from tunekit.advisor.simulate.question import Question
from tunekit.advisor.simulate.trace import PARTS

if TYPE_CHECKING:
    from tunekit.advisor.simulate.collated import Shape

_WHOLE_AT_LOADING = "bitsandbytes quantises on the device: each holds the whole quantised base before it is divided"
_WHOLE_ON_HOST = "every rank reads the whole weights before DeepSpeed divides them"
_NOT_ANSWERED = (
    "what PEFT's benchmark takes while it generates answers could not be traced ({}): the training steps alone"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reserved:
    """The most that is reserved."""

    num_bytes: int
    needed_bytes: int
    """Without what the allocator keeps only because there is room."""
    moment: str
    """When most is needed."""
    where: str = ""
    """When most is reserved, as `step 3, backward`; empty where no sequence of batches was replayed."""
    reasons: tuple[str, ...] = ()
    missing: bool = False
    """Whether something that may take more could not be traced."""


def reserved(asked: Question, shape: Shape, held: Held, replays: bool) -> Reserved:
    """What is reserved, from the fullest step.

    Args:
        asked: What is run.
        shape: Of the longest batch.
        held: Its step, or the evaluation that takes more.
        replays: Whether batches as long as the data has them are replayed.
    """
    if not asked.cuda:
        store = held.fixed.get(STORE, 0)  # one block, which lies beside the heap
        share = 1.0 if asked.launched else HEAP_SHARE
        heap = store + int((held.allocated_bytes - store) * share)
        whole = _base_bytes(held) if asked.plan.sharding == "zero3" else 0
        if whole > heap:
            return Reserved(num_bytes=whole, needed_bytes=whole, moment="dividing", reasons=(_WHOLE_ON_HOST,))
        return Reserved(num_bytes=heap, needed_bytes=heap, moment=held.top.moment)
    whole, reasons = _whole_base_bytes(asked, held), []
    needed = max(_in_steps(asked, held), whole, _in_steps(asked, held.trained) if held.trained else 0)
    moment, missing = held.top.moment, False
    if whole:
        reasons.append(_WHOLE_AT_LOADING)
    if asked.loop == "peft-benchmark":
        try:
            needed, moment = max((needed, moment), (_answering(asked, shape, held), "evaluation"))
        except Exception as e:  # a model that answers otherwise than it trains
            reasons.append(_NOT_ANSWERED.format(_short(e)))
            missing = True
    number, where = _in_order(asked, shape, held) if replays and asked.loop == "trainer" else (0, "")
    return Reserved(
        num_bytes=max(needed, number), needed_bytes=needed, moment=moment, where=where, reasons=tuple(reasons), missing=missing
    )  # fmt: skip


def _short(e: Exception) -> str:
    return " ".join(f"{type(e).__name__}: {e}".split())[:200]


def _in_steps(asked: Question, held: Held) -> int:
    """What PyTorch's allocator holds after two such steps.

    PEFT's benchmark empties the cache before each window's first and longest batch, so that one step decides; the batch before
    is part of the record. It loads the weights straight onto the device, as every quantised base is loaded.
    """
    from tunekit.advisor.simulate.allocator import CachingAllocator, replay

    allocator = CachingAllocator()
    for name, size in enumerate(held.pieces, start=1):
        allocator.allocate(-name, size)
    benchmark = asked.loop == "peft-benchmark"
    preloads = benchmark or asked.plan.quantization is not None
    replay(allocator, held.share.timeline, steps=1 if benchmark else 2, preloads=preloads)
    return allocator.peak_reserved


def _whole_base_bytes(asked: Question, held: Held) -> int:
    """What each device holds of a quantised base before it is divided; 0 where it is not."""
    if asked.plan.quantization is None or asked.plan.sharding not in ("zero3", "fsdp", "fsdp-hybrid"):
        return 0
    return _base_bytes(held)


def _base_bytes(held: Held) -> int:
    """The whole base."""
    timeline = held.recorded.timeline
    return int(timeline.sizes[timeline.parts == PARTS.index("weights")].sum())


def _answering(asked: Question, shape: Shape, held: Held) -> int:
    """What PEFT's benchmark reserves while it generates answers."""
    from tunekit.advisor.simulate.peft_runs import answering, evaluated

    shape = evaluated(shape)
    return answering(asked.recorded(shape, "peft-evaluation").timeline, shape, held.pieces)


def _in_order(asked: Question, shape: Shape, held: Held) -> tuple[int, str]:
    """What the run's batches reserve in their order, and when; 0 where their lengths are not known."""
    from tunekit.advisor.simulate.whole_run import replayed

    run = replayed(
        asked.plan, asked.data, shape, lambda s: held_in(asked, s).share.timeline, (held.trained or held).pieces,
        asked.hardware.memory_bytes - device_bytes(asked.hardware, 0), held.share.timeline if held.trained else None,
    )  # fmt: skip
    return (run.allocator.peak_reserved, run.reserved_at) if run else (0, "")
