"""The settings under which a plan fits: micro-batch, checkpointing, precision, quantisation, sharding, by simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from tunekit.advisor.propose import refusal
from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.finding import Finding
from tunekit.plan import Plan
from tunekit.workload import Workload

_DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_QUANTIZED_BYTES = {"nf4": 0.5, "fp4": 0.5, "int8": 1.0}
_SHARDED_WEIGHTS = ("zero3", "fsdp", "fsdp-hybrid")
_BUSY_TOKENS = 256
"""From about this many tokens at a time a matrix multiplication is bound by arithmetic, not by reading the weights: the
ratio of 16-bit arithmetic to memory bandwidth is 150 to 400 operations a byte on the cards of the catalogue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Screened:
    """What decides whether and in which order plans are simulated in full."""

    least_bytes: int
    """Of the device; `memory` certainly does not stay below."""
    seconds: float
    """About what the run would take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulator:
    """What predicts a plan: memory first, and the duration only of what fits."""

    memory: Callable[[Workload, Plan], MemoryEstimate]
    duration: Callable[[Workload, Plan], TimeEstimate]
    screen: Callable[[Workload, Plan], Screened]
    """What can be told of a plan without replaying the allocator, from a step that was recorded for other micro-batches."""
    least: Callable[[Workload, Plan], int] | None = None
    """`Screened.least_bytes` alone, where that is cheaper: how long a step takes is told from a record of its own."""

    def least_bytes(self, workload: Workload, plan: Plan) -> int:
        """Of the device; `memory` certainly does not stay below."""
        return self.screen(workload, plan).least_bytes if self.least is None else self.least(workload, plan)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A plan at the settings that were found, with what was predicted for exactly these."""

    plan: Plan
    memory: MemoryEstimate | None
    """None where the plan was refused."""
    duration: TimeEstimate | None
    """None where the plan was refused or does not fit."""
    fits: bool
    refused: Finding | None = None
    """Why no setting can work at all."""


def fit(workload: Workload, plan: Plan, simulator: Simulator) -> Fitted:
    """The quickest settings of a plan that fit, or the smallest ones where none do.

    The stages are tried in order of what they cost in quality and speed: as preferred, with the state sharded, a
    16-bit base, a 4-bit base. Within a stage, a micro-batch is sought without and, where that leaves the device idle,
    with activation checkpointing; the shorter run is taken. Where the goal is speed, the shortest run over all stages
    and micro-batches is taken; where it is memory, one row at a time with checkpointing.
    """
    refused: Finding | None = None
    last: Plan | None = None
    shortest: Fitted | None = None
    for staged in stages(workload, plan):
        reason = refusal(workload, staged)
        if reason is not None:
            refused = refused or reason
            continue
        # How long the way to the host's memory takes is not predicted, so it is only gone where nothing else fits.
        if shortest is not None and (staged.offload or (_frugal(staged) and _good(workload, shortest.plan))):
            break
        last = staged
        if floor_bytes(workload, staged) > workload.hardware.memory_bytes:
            continue
        found = _quickest(workload, staged, simulator)
        if found is not None and workload.goal != "speed":
            return found
        shortest = _shorter(shortest, found)
    if shortest is not None:
        return shortest
    if last is None:
        return Fitted(plan=plan, memory=None, duration=None, fits=False, refused=refused)
    smallest = _checkpointed(workload, _with_batch(last, 1))
    return Fitted(plan=smallest, memory=simulator.memory(workload, smallest), duration=None, fits=False)


def fits(workload: Workload, memory: MemoryEstimate) -> bool:
    """Whether even the high end of the prediction leaves the device enough memory."""
    return memory.interval[1] <= workload.hardware.memory_bytes


# ---------------------------------------------------------------------------------------------- stages
def stages(workload: Workload, plan: Plan) -> Iterator[Plan]:
    """The plan under ever smaller settings, the preferred one first."""
    for precision in _precisions(workload, plan):
        for sharding in _shardings(workload, plan, precision):
            yield plan.replace(**{**precision, "sharding": sharding})
    yield from _offloaded(workload, plan)


def _offloaded(workload: Workload, plan: Plan) -> Iterator[Plan]:
    """The optimizer's state, then the weights too, in the host's memory: last, since the way there is slow.

    Only where the host's memory is known to hold them: sixteen bytes a parameter that learns, and the weights.
    """
    devices, host = workload.hardware.total_devices, workload.hardware.host_memory_bytes
    if devices == 1 or host is None or not plan.method.trains_base or plan.method.family != "full":
        return
    room, count = host * workload.hardware.num_machines, workload.model.num_parameters
    kept = {"optim": "adamw_torch", "sharding": "zero3"}
    if 16 * count < room:
        yield plan.replace(**kept, offload="optimizer")
    if 18 * count < room:
        yield plan.replace(**kept, offload="parameters")


def _precisions(workload: Workload, plan: Plan) -> Iterator[Mapping[str, Any]]:
    """Precision and quantisation, from the preferred to the smallest."""
    preferred = {"dtype": plan.dtype, "mixed_precision": plan.mixed_precision, "quantization": plan.quantization}
    yield preferred
    half = "bfloat16" if workload.hardware.bf16 or workload.hardware.device == "cpu" else "float16"
    mixed = "bf16" if half == "bfloat16" else "fp16"
    if plan.method.trains_base:
        # Weights, gradients and Adam's moments all in bfloat16; half precision has no range for it.
        if half == "bfloat16" and workload.hardware.device == "cuda":
            yield {"dtype": "bfloat16", "mixed_precision": None}
            yield {"dtype": "bfloat16", "mixed_precision": None, "optim": "adamw_bnb_8bit"}
        return
    if plan.dtype == "float32":
        yield {"dtype": half, "mixed_precision": mixed}
    if plan.quantization is None:
        yield {"dtype": half, "mixed_precision": mixed, "quantization": "nf4"}


def _shardings(workload: Workload, plan: Plan, precision: Mapping[str, Any]) -> tuple[str | None, ...]:
    """How several devices share: whole copies first, then the optimizer's state and gradients, then the weights."""
    if workload.hardware.total_devices == 1:
        return (None,)
    if precision.get("optim"):
        return ("ddp",)
    return ("ddp", "zero2", "zero3") if plan.method.trains_base else ("ddp", "zero3")


def floor_bytes(workload: Workload, plan: Plan) -> float:
    """Bytes of the weights alone (with full fine-tuning: of gradients and moments too) that one device holds at least."""
    count, devices = workload.model.num_parameters, plan.num_processes
    # The vocabulary's table is not quantised.
    table = min(count, workload.model.vocab_size * workload.model.hidden_size)
    size = _DTYPE_BYTES[plan.dtype]
    weights = (
        size * count
        if plan.quantization is None
        else size * table + _QUANTIZED_BYTES[plan.quantization] * (count - table)
    )
    # bitsandbytes quantises on the device, which holds the whole quantised base before it is divided.
    weights /= devices if plan.sharding in _SHARDED_WEIGHTS and plan.quantization is None else 1
    if plan.method.family != "full":
        return weights
    gradients = size * count / (devices if plan.sharding in ("zero2", *_SHARDED_WEIGHTS) else 1)
    moments = 0.0 if plan.offload else (2.0 if "8bit" in plan.optim else 2 * size) * count
    weights = 0.0 if plan.offload == "parameters" else weights
    return weights + gradients + moments / (devices if plan.sharding not in (None, "ddp") else 1)


# ---------------------------------------------------------------------------------------------- within a stage
def _quickest(workload: Workload, plan: Plan, simulator: Simulator) -> Fitted | None:
    """The shorter run of those without and with checkpointing, or None where neither fits.

    Checkpointing computes the forward pass twice, so it only pays where it lets a device that sees few tokens at a
    time see more of them; elsewhere it is not even tried.
    """
    if workload.goal == "memory":
        least = _tried(workload, _checkpointed(workload, _with_batch(plan, 1)), simulator)
        return least if least.fits else None
    plain = _some_batches(workload, plan, simulator)
    saving = _checkpointed(workload, plan)
    if saving is plan or (plain is not None and (_good(workload, plain.plan) or _unbeaten(workload, plain, simulator))):
        return plain
    return _shorter(plain, _some_batches(workload, saving, simulator, to_beat=plain))


def _shorter(*found: Fitted | None) -> Fitted | None:
    """The one with the shorter predicted run, the first where they are equal."""
    timed = [f for f in found if f is not None]
    return min(timed, key=lambda f: f.duration.total_seconds if f.duration else 0.0, default=None)


def _good(workload: Workload, plan: Plan) -> bool:
    """Whether nothing is computed twice and the device is kept busy: more memory could hardly make it quicker."""
    tokens = plan.per_device_train_batch_size * workload.data.mean_tokens
    return not plan.activation_checkpointing and (plan.gradient_accumulation_steps == 1 or tokens >= _BUSY_TOKENS)


_RECOMPUTATION = 1.2
"""What checkpointing makes of a step's time at least: the forward pass, taken twice, is a third of it or more."""


def _unbeaten(workload: Workload, plain: Fitted, simulator: Simulator) -> bool:
    """Whether checkpointing could not be quicker even with as many rows at a time as one likes."""
    sizes = [size for size in divisors(_rows(plain.plan)) if size > 1]
    best = min((simulator.screen(workload, _with_batch(plain.plan, size)).seconds for size in sizes), default=inf)
    return plain.duration is not None and plain.duration.total_seconds <= _RECOMPUTATION * best


def _frugal(plan: Plan) -> bool:
    """Whether the plan saves memory in a way that costs time."""
    return plan.quantization is not None or "8bit" in plan.optim or plan.offload is not None


def _checkpointed(workload: Workload, plan: Plan) -> Plan:
    """The plan with activation checkpointing where the architecture can, else the same plan."""
    return plan.replace(activation_checkpointing=True) if workload.model.can_checkpoint else plan


def _some_batches(workload: Workload, plan: Plan, simulator: Simulator, to_beat: Fitted | None = None) -> Fitted | None:
    """The whole batch at once where that is sure to fit, else the micro-batch with the shortest run that fits.

    Small micro-batches pad less, large ones keep the device busier. A single row is a step of its own to simulate: it is
    tried where two do not fit, or where only speed counts.

    Args:
        to_beat: What takes longer than this is left out.
    """
    rows, memory = _rows(plan), workload.hardware.memory_bytes
    roomy = floor_bytes(workload, plan) + rows * row_bytes(workload, plan) < memory / 2
    if roomy and rows > 1 and workload.goal != "speed":
        whole = _tried(workload, _with_batch(plan, rows), simulator)
        if whole.fits:
            return whole
    several = [_with_batch(plan, size) for size in reversed(divisors(rows)) if size > 1]
    screened = [(p, simulator.screen(workload, p)) for p in several]
    limit = to_beat.duration.total_seconds if to_beat is not None and to_beat.duration else inf
    possible = [(s.seconds, p) for p, s in screened if s.least_bytes <= memory and s.seconds < limit]
    found = _first_that_fits(workload, possible, simulator)
    if workload.goal != "speed" and (found or to_beat or _beyond(screened[:2], memory)):
        return found
    single = _with_batch(plan, 1)
    if simulator.least_bytes(workload, single) > memory:
        return found
    one = _tried(workload, single, simulator)
    return _shorter(found, one if one.fits else None)


def _first_that_fits(workload: Workload, timed: Sequence[tuple[float, Plan]], simulator: Simulator) -> Fitted | None:
    """Of the plans that fit the one with the shortest run, the larger micro-batch where two take as long."""
    for _, plan in sorted(timed, key=lambda pair: (pair[0], -pair[1].per_device_train_batch_size)):
        found = _tried(workload, plan, simulator)
        if found.fits:
            return found
    return None


_ONE_ROW_LESS = 0.9
"""A single row needs no mask and copies less than its share of several, by a few per cent."""


def _beyond(screened: Sequence[tuple[Plan, Screened]], memory: float) -> bool:
    """Whether even one row is sure not to fit, on the straight line through two micro-batches."""
    if len(screened) < 2:
        return False
    (few, less), (many, more) = screened
    rows = few.per_device_train_batch_size
    per_row = (more.least_bytes - less.least_bytes) / (many.per_device_train_batch_size - rows)
    return _ONE_ROW_LESS * (less.least_bytes - per_row * (rows - 1)) > memory


def row_bytes(workload: Workload, plan: Plan) -> float:
    """Roughly the bytes that one row adds: 34 values a layer and hidden unit, 14 bytes a logit; from above."""
    model, size = workload.model, 4.0 if plan.mixed_precision is None and plan.dtype == "float32" else 2.0
    layers = 34 * size * model.num_layers * model.hidden_size
    logits = 0 if workload.task.has_head else 14 * model.vocab_size
    return (plan.max_length or model.context_length or 512) * (layers + logits)


def _rows(plan: Plan) -> int:
    """Rows of one optimizer step on one device."""
    return plan.per_device_train_batch_size * plan.gradient_accumulation_steps


def _tried(workload: Workload, plan: Plan, simulator: Simulator) -> Fitted:
    memory = simulator.memory(workload, plan)
    does = fits(workload, memory)
    return Fitted(plan=plan, memory=memory, duration=simulator.duration(workload, plan) if does else None, fits=does)


def _with_batch(plan: Plan, micro: int) -> Plan:
    """The plan with this micro-batch and as many rows per step as before; evaluation keeps its proportion."""
    rows = _rows(plan)
    ratio = max(1, plan.per_device_eval_batch_size // plan.per_device_train_batch_size)
    return plan.replace(
        per_device_train_batch_size=micro, gradient_accumulation_steps=rows // micro, per_device_eval_batch_size=micro * ratio
    )  # fmt: skip


def divisors(n: int) -> list[int]:
    """Every divisor, the largest first.

    Example:
        >>> divisors(12)
        [12, 6, 4, 3, 2, 1]
    """
    return [d for d in range(n, 0, -1) if n % d == 0]
