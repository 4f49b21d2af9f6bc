"""How long a run takes: every op of the recorded step at the average padded length, through a roofline of the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunekit.advisor.simulate.question import Question
from tunekit.calibration import corrected_time
from tunekit.estimate import TimeEstimate

if TYPE_CHECKING:
    from tunekit.advisor.simulate.batches import Batches
    from tunekit.advisor.simulate.speed import Roofline
    from tunekit.advisor.simulate.trace import Cost

    Ops = Sequence[tuple[str, Cost, int]]

_TIME_SPREAD = (0.6, 1.7)
_ATTENTION = "_scaled_dot_product"
_BEFORE_THE_INPUT = ("prompt-tuning", "p-tuning")
_PER_ROW = ("forward", "loss", "backward")
"""The moments that every micro-batch goes through."""


def duration(asked: Question) -> TimeEstimate:
    """The duration of a run; coarse, and saying so, where its step cannot be traced."""
    from tunekit.advisor.simulate.coarse import coarse_ops
    from tunekit.advisor.simulate.speed import num_steps, roofline, seconds_by_moment

    plan, data, shapes = asked.plan, asked.data, asked.batches()
    line = roofline(asked.hardware)
    before, supply, why = 0.0, 0.0, ""
    try:
        ops, fidelity = ops_of_a_step(asked, shapes), "traced"
        before, supply, why = _frozen(asked, shapes, line)
    except Exception:
        ops, fidelity = coarse_ops(plan, asked.model, shapes.typical), "coarse"
    once = seconds_by_moment(ops, line)
    micro = plan.gradient_accumulation_steps
    parts = {m: s * (micro if m in _PER_ROW else 1) for m, s in once.items() if s}
    parts |= {"supply": supply * micro} if supply else {}
    step = sum(parts.values())
    steps = num_steps(plan, data, shapes.rows_per_example)
    low, high = _TIME_SPREAD if fidelity == "traced" else (0.3, 3.0)
    total = step * (steps or 1) + before
    flops = sum(c.flops * n * (micro if m in _PER_ROW else 1) for m, c, n in ops)
    unknown = () if steps else ("the number of rows is not known: one step",)
    found = TimeEstimate(
        step_seconds=step,
        num_steps=steps or 1,
        total_seconds=total,
        once_seconds=before,
        interval=(total * low, total * high),
        tokens_per_second=shapes.mean_tokens * plan.effective_batch_size / step if step else 0.0,
        step_flops=float(flops),
        parts=parts,
        fidelity="traced" if fidelity == "traced" else "coarse",
        reasons=(*((line.assumed,) if line.assumed else ()), *unknown, *([why] if why else ())),
    )
    return corrected_time(found, asked.hardware)


def _frozen(asked: Question, shapes: Batches, line: Roofline) -> tuple[float, float, str]:
    """With the frozen layers' answers kept: seconds of the pass that fills the store, of handing a batch its answers, and in words."""
    from tunekit.advisor.simulate.kept import filling_timeline, mean_share, num_filling_batches
    from tunekit.advisor.simulate.speed import SUPPLY_BYTES_PER_SECOND, seconds_by_moment

    recorded = asked.recorded(shapes.longest)
    if recorded.kept is None:
        return 0.0, 0.0, ""
    typical = shapes.typical
    handed = typical.batch * typical.choices * typical.length * recorded.kept.token_bytes / SUPPLY_BYTES_PER_SECOND
    batches, share = num_filling_batches(asked), mean_share(shapes)
    if not batches:
        return 0.0, handed, "the pass through the frozen layers before the first step: the number of rows is not known"
    ops = filling_timeline(asked, shapes.longest, recorded).ops
    seconds = batches * sum(seconds_by_moment([(m, _scaled(c, share, share), n) for m, c, n in ops], line).values())
    return seconds, handed, f"the pass through the frozen layers before the first step: {seconds:,.3g} s"


def ops_of_a_step(asked: Question, shapes: Batches) -> Ops:
    """The ops of a step at the average padded length: those of the longest one, which were recorded for the memory, scaled.

    Products and elementwise work are a straight line in the length, attention is its square; what depends on neither
    rows nor length (weights that are read, the optimizer) stays. Virtual tokens stay too: before the input they
    lengthen every row, in the layers only what is attended to. A step of PEFT's benchmark is recorded at the average length itself.
    """
    longest, typical = shapes.longest, shapes.typical
    if asked.loop == "peft-benchmark":
        return asked.recorded(typical).timeline.ops
    many, few = (s.length + s.target_length for s in (longest, typical))
    plan = asked.plan
    virtual = getattr(plan.method, "num_virtual_tokens", 0) if plan.method.family == "prompts" else 0
    before = virtual if plan.method.slug in _BEFORE_THE_INPUT else 0
    rows, attended = (few + before) / (many + before), (few + virtual) / (many + virtual)
    ops = asked.recorded(longest).timeline.ops
    return [(m, _scaled(c, rows, attended) if m in _PER_ROW else c, n) for m, c, n in ops]


def _scaled(cost: Cost, ratio: float, attended: float) -> Cost:
    square = attended if _ATTENTION in cost.name else 1.0
    return cost._replace(
        flops=cost.fixed_flops + int((cost.flops - cost.fixed_flops) * ratio * square),
        num_bytes=cost.fixed_bytes + int((cost.num_bytes - cost.fixed_bytes) * ratio),
    )
