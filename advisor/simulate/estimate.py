"""A plan's peak memory and duration, put together from the recorded step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunekit.advisor.simulate.card import HEAP_SHARE, device_bytes, spread, workspace_bytes
from tunekit.advisor.simulate.loop import Loop, Shape, Step
from tunekit.advisor.simulate.trace import PARTS
from tunekit.calibration import corrected_memory, corrected_time
from tunekit.contracts import learnt_form
from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.plan import Plan
from tunekit.task import Task
from tunekit.workload import DataFacts, Hardware, ModelFacts, Workload

if TYPE_CHECKING:
    from tunekit.advisor.simulate.batches import Batches
    from tunekit.advisor.simulate.peak import Peak
    from tunekit.advisor.simulate.per_rank import PerRank
    from tunekit.advisor.simulate.record import Recorded
    from tunekit.advisor.simulate.trace import Cost

    Ops = Sequence[tuple[str, Cost, int]]

_COARSE_SPREAD = (0.5, 2.0)
_TIME_SPREAD = (0.6, 1.7)
_VARYING = (
    "batches of varying length: where there is room PyTorch's allocator keeps more than it needs, and gives it back when there is none",
)
_WHOLE_AT_LOADING = "bitsandbytes quantises on the device: each holds the whole quantised base before it is divided"
_EVALUATED = "the evaluation, {} rows at a time, takes more than a training step"
_ATTENTION = "_scaled_dot_product"
_BEFORE_THE_INPUT = ("prompt-tuning", "p-tuning")
_PER_ROW = ("forward", "loss", "backward")
"""The moments that every micro-batch goes through."""


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
    from tunekit.advisor.simulate.batches import batches
    from tunekit.advisor.simulate.coarse import coarse_memory

    model = model or _facts(plan)
    shapes = batches(plan, model, data, loop)
    try:
        return _traced_memory(plan, hardware, data, loop, model, shapes.longest, replays)
    except Exception as e:  # whatever a model's code may raise on tensors without values
        return coarse_memory(plan, hardware, model, shapes.longest, device_bytes, _COARSE_SPREAD, _short(e))


def screen(plan: Plan, hardware: Hardware, data: DataFacts | None, model: ModelFacts) -> dict[str, Any]:
    """What can be told of a plan without replaying the allocator: `least_bytes` of the device and about the `seconds`.

    A method that trains little is taken to accumulate gradients even where it takes the whole batch at once, so that one
    record serves every micro-batch. Where the step cannot be traced, `least_bytes` is 0.
    """
    from tunekit.advisor.simulate.batches import batches

    micro, parts = plan.per_device_train_batch_size, plan.gradient_accumulation_steps
    accumulates = parts > 1 or (not plan.method.trains_base and micro > 1)
    shape = batches(plan, model, data, "trainer").longest
    seconds = _time(plan, hardware, data, model, "trainer", accumulates).total_seconds
    try:
        held = _held(plan, hardware, data, "trainer", model, shape, accumulates)
    except Exception:
        return {"least_bytes": 0, "seconds": seconds}
    least = int(device_bytes(hardware, held.allocated_bytes) * spread(hardware, shape)[1])
    return {"least_bytes": least, "seconds": seconds}


def needed_bytes(plan: Plan, hardware: Hardware, data: DataFacts | None, model: ModelFacts) -> int | None:
    """What tensors alone need of a device at the fullest moment; None where the step cannot be traced."""
    from tunekit.advisor.simulate.batches import batches

    try:
        return _held(
            plan, hardware, data, "trainer", model, batches(plan, model, data, "trainer").longest
        ).allocated_bytes
    except Exception:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    """What one rank holds at the fullest moment of a step."""

    recorded: Recorded
    share: PerRank
    top: Peak
    fixed: Mapping[str, int]
    trained: _Held | None = None
    """The training step, where it is an evaluation that is fuller."""

    @property
    def allocated_bytes(self) -> int:
        return self.top.num_bytes + sum(self.fixed.values())


def _held(
    plan: Plan,
    hardware: Hardware,
    data: DataFacts | None,
    loop: Loop,
    model: ModelFacts,
    shape: Shape,
    accumulates: bool | None = None,
) -> _Held:
    """The training step, or an evaluation between two of them where that takes more: it keeps nothing but may have more rows."""
    trained = _held_in(loop, plan, hardware, data, model, shape, accumulates)
    rows = plan.per_device_eval_batch_size
    if loop != "trainer" or rows <= shape.batch or not _evaluates(plan, data):
        return trained
    seen = _held_in("trainer-evaluation", plan, hardware, data, model, replace(shape, batch=rows), accumulates)
    return replace(seen, trained=trained) if seen.allocated_bytes > trained.allocated_bytes else trained


def _evaluates(plan: Plan, data: DataFacts | None) -> bool:
    """Whether there are rows to evaluate on."""
    if data is not None and data.num_eval_examples:
        return True
    source = plan.data
    return source is not None and bool(source.eval_split or source.eval_path or source.eval_share)


def _held_in(
    loop: Loop,
    plan: Plan,
    hardware: Hardware,
    data: DataFacts | None,
    model: ModelFacts,
    shape: Shape,
    accumulates: bool | None = None,
) -> _Held:
    from tunekit.advisor.simulate.peak import peak
    from tunekit.advisor.simulate.per_rank import per_rank

    recorded = _recorded(plan, hardware, data, loop, model, shape, accumulates)
    share = per_rank(recorded, plan)
    cuda = hardware.device == "cuda"
    fixed = {**share.fixed, **({"workspace": workspace_bytes(hardware)} if cuda else {})}
    return _Held(recorded=recorded, share=share, top=peak(share.timeline, 512 if cuda else 1), fixed=fixed)


def _traced_memory(
    plan: Plan, hardware: Hardware, data: DataFacts | None, loop: Loop, model: ModelFacts, shape: Shape, replays: bool
) -> MemoryEstimate:
    from tunekit.advisor.simulate.whole_run import replayed

    held = _held(plan, hardware, data, loop, model, shape)
    recorded, share, top, allocated = held.recorded, held.share, held.top, held.allocated_bytes
    cuda = hardware.device == "cuda"
    reserved = _reserved(share.timeline, held.fixed, plan, loop) if cuda else int(allocated * HEAP_SHARE)
    whole = _whole_base_bytes(recorded, plan) if cuda else 0
    reserved = max(reserved, whole)
    moment = top.moment
    if held.trained is not None and cuda:
        reserved = max(reserved, _reserved(held.trained.share.timeline, held.trained.fixed, plan, loop))
    if loop == "peft-benchmark":
        reserved, moment = max((reserved, moment), (_answering(plan, hardware, data, model, shape, held), "evaluation"))
    low, high = spread(hardware, shape)
    needed = device_bytes(hardware, reserved)
    run = None
    if replays and cuda and loop == "trainer":
        trained = held.trained or held
        run = replayed(
            plan, data, shape, lambda s: _held_in(loop, plan, hardware, data, model, s).share.timeline, _pieces(trained.fixed),
            hardware.memory_bytes - device_bytes(hardware, 0), held.share.timeline if held.trained else None,
        )  # fmt: skip
    reserved = max(reserved, run.allocator.peak_reserved) if run else reserved
    device = device_bytes(hardware, reserved)
    found = MemoryEstimate(
        parts={**top.parts, **held.fixed},
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        device_bytes=device,
        interval=(int(needed * low), max(device, int(needed * high))),
        moment=moment,
        reserved_moment=run.reserved_at if run else "",
        reasons=(
            *recorded.assumed,
            *share.reasons,
            _length_reason(shape, data),
            *([_WHOLE_AT_LOADING] if whole else ()),
            *(_EVALUATED.format(plan.per_device_eval_batch_size) for _ in [held.trained] if held.trained),
            *(_VARYING if cuda and shape.padded else ()),
        ),
        trainable_parameters=recorded.trainable_parameters,
        total_parameters=recorded.total_parameters,
    )
    return corrected_memory(found, hardware)


def _answering(
    plan: Plan, hardware: Hardware, data: DataFacts | None, model: ModelFacts, shape: Shape, held: _Held
) -> int:
    """What PEFT's benchmark reserves while it generates answers; 0 where a model cannot be traced doing so."""
    from tunekit.advisor.simulate.peft_runs import answering, evaluated

    shape = evaluated(shape)
    try:
        recorded = _recorded(plan, hardware, data, "peft-evaluation", model, shape)
        return answering(recorded.timeline, shape, _pieces(held.fixed))
    except Exception:  # a model that answers otherwise than it trains: the steps decide
        return 0


def _recorded(
    plan: Plan,
    hardware: Hardware,
    data: DataFacts | None,
    loop: Loop,
    model: ModelFacts,
    shape: Shape,
    accumulates: bool | None = None,
) -> Any:
    from tunekit.advisor.simulate.peft_runs import as_peft
    from tunekit.advisor.simulate.per_rank import zero_half
    from tunekit.advisor.simulate.record import Subject, record

    half = zero_half(plan)
    subject = Subject(
        config_json=model.config_json,
        task=learnt_form(plan.objective, Task.named(plan.task), model.side),
        num_labels=data.num_labels if data else None,
        problem_type=plan.problem_type or (data.problem_type if data else None),
        dtype=half or plan.dtype,
        attn_implementation=plan.attn_implementation,
        quantization=plan.quantization,
    )
    step = Step(
        loop=loop,
        device=hardware.device,
        optim=plan.optim,
        clips=plan.max_grad_norm > 0,
        accumulates=plan.gradient_accumulation_steps > 1 if accumulates is None else accumulates,
        mixed_precision=None if half else plan.mixed_precision,
        checkpoints=plan.activation_checkpointing,
    )
    method = as_peft(plan.method) if loop.startswith("peft") else plan.method
    return record(subject, method, plan.learning_objective, shape, step)


def _reserved(timeline: Any, fixed: Mapping[str, int], plan: Plan, loop: Loop) -> int:
    """What PyTorch's allocator holds after two such steps.

    PEFT's benchmark empties the cache before each window's first and longest batch, so that one step decides; the batch before
    is part of the record. It loads the weights straight onto the device, as every quantised base is loaded.
    """
    from tunekit.advisor.simulate.allocator import CachingAllocator, replay

    allocator = CachingAllocator()
    for name, size in enumerate(_pieces(fixed), start=1):
        allocator.allocate(-name, size)
    benchmark = loop == "peft-benchmark"
    replay(allocator, timeline, steps=1 if benchmark else 2, preloads=benchmark or plan.quantization is not None)
    return allocator.peak_reserved


def _pieces(fixed: Mapping[str, int]) -> list[int]:
    """The allocations that make up what lives beside the timeline."""
    return [n for part, size in fixed.items() for n in ((size // 2, size // 2) if part == "workspace" else (size,))]


def _whole_base_bytes(recorded: Recorded, plan: Plan) -> int:
    """What each device holds of a quantised base before it is divided; 0 where it is not."""
    if plan.quantization is None or plan.sharding not in ("zero3", "fsdp", "fsdp-hybrid"):
        return 0
    timeline = recorded.timeline
    return int(timeline.sizes[timeline.parts == PARTS.index("weights")].sum())


def _length_reason(shape: Shape, data: DataFacts | None) -> str:
    known = "the longest row" if data is not None and data.lengths else "every row at the longest length"
    return f"a batch of {shape.batch} rows of {shape.length} tokens ({known})"


def _ops(
    plan: Plan,
    hardware: Hardware,
    data: DataFacts | None,
    loop: Loop,
    model: ModelFacts,
    shapes: Batches,
    accumulates: bool | None,
) -> Ops:
    """The ops of a step at the average padded length: those of the longest one, which were recorded for the memory, scaled.

    Products and elementwise work are a straight line in the length, attention is its square; what depends on neither
    rows nor length (weights that are read, the optimizer) stays. Virtual tokens stay too: before the input they
    lengthen every row, in the layers only what is attended to. A step of PEFT's benchmark is recorded at the average length itself.
    """
    longest, typical = shapes.longest, shapes.typical
    if loop == "peft-benchmark":
        return _recorded(plan, hardware, data, loop, model, typical, accumulates).timeline.ops
    many, few = (s.length + s.target_length for s in (longest, typical))
    virtual = getattr(plan.method, "num_virtual_tokens", 0) if plan.method.family == "prompts" else 0
    before = virtual if plan.method.slug in _BEFORE_THE_INPUT else 0
    rows, attended = (few + before) / (many + before), (few + virtual) / (many + virtual)
    ops = _recorded(plan, hardware, data, loop, model, longest, accumulates).timeline.ops
    return [(m, _scaled(c, rows, attended) if m in _PER_ROW else c, n) for m, c, n in ops]


def _scaled(cost: Cost, ratio: float, attended: float) -> Cost:
    square = attended if _ATTENTION in cost.name else 1.0
    return cost._replace(
        flops=cost.fixed_flops + int((cost.flops - cost.fixed_flops) * ratio * square),
        num_bytes=cost.fixed_bytes + int((cost.num_bytes - cost.fixed_bytes) * ratio),
    )


def _facts(plan: Plan) -> ModelFacts:
    from tunekit.advisor.observe.model import model_facts

    return model_facts(plan.model, plan.revision)


def _short(e: Exception) -> str:
    return " ".join(f"{type(e).__name__}: {e}".split())[:200]


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
    return _time(plan, hardware, data, model or _facts(plan), loop)


def _time(
    plan: Plan,
    hardware: Hardware,
    data: DataFacts | None,
    model: ModelFacts,
    loop: Loop,
    accumulates: bool | None = None,
) -> TimeEstimate:
    from tunekit.advisor.simulate.batches import batches
    from tunekit.advisor.simulate.coarse import coarse_ops
    from tunekit.advisor.simulate.speed import num_steps, roofline, seconds_by_moment

    shapes = batches(plan, model, data, loop)
    try:
        ops, fidelity = _ops(plan, hardware, data, loop, model, shapes, accumulates), "traced"
    except Exception:
        ops, fidelity = coarse_ops(plan, model, shapes.typical), "coarse"
    line = roofline(hardware)
    once = seconds_by_moment(ops, line)
    micro = plan.gradient_accumulation_steps
    parts = {m: s * (micro if m in _PER_ROW else 1) for m, s in once.items() if s}
    step = sum(parts.values())
    steps = num_steps(plan, data, shapes.rows_per_example)
    low, high = _TIME_SPREAD if fidelity == "traced" else (0.3, 3.0)
    total = step * (steps or 1)
    flops = sum(c.flops * n * (micro if m in _PER_ROW else 1) for m, c, n in ops)
    unknown = () if steps else ("the number of rows is not known: one step",)
    found = TimeEstimate(
        step_seconds=step,
        num_steps=steps or 1,
        total_seconds=total,
        interval=(total * low, total * high),
        tokens_per_second=shapes.mean_tokens * plan.effective_batch_size / step if step else 0.0,
        step_flops=float(flops),
        parts=parts,
        fidelity="traced" if fidelity == "traced" else "coarse",
        reasons=(*((line.assumed,) if line.assumed else ()), *unknown),
    )
    return corrected_time(found, hardware)
