"""The changes of a plan that would save most memory, each one simulated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunekit.advisor.simulate.estimate import needed_bytes
from tunekit.errors import TunekitError
from tunekit.plan import Plan
from tunekit.task import Task
from tunekit.workload import DataFacts, Hardware, ModelFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """A change and what it saves of one device's memory."""

    changes: Mapping[str, Any]
    """Settings of the plan with their new values, as `Plan.replace` takes them."""
    saved_bytes: int


def savings(
    plan: Plan, hardware: Hardware, data: DataFacts | None, model: ModelFacts, count: int = 3
) -> tuple[Saving, ...]:
    """The changes that save most, the best first; none that the plan, the method or the device does not allow.

    None of them changes what an optimizer step sees, but for shorter rows and coarser weights.

    Args:
        plan, hardware, data, model: As for `estimate_memory`.
        count: How many at most.
    """
    now = needed_bytes(plan, hardware, data, model)
    if now is None:
        return ()
    found = []
    for changes in _possible(plan, hardware, data, model):
        try:
            then = needed_bytes(plan.replace(**changes), hardware, data, model)
        except TunekitError:
            continue
        if then is not None and then < now:
            found.append(Saving(changes=changes, saved_bytes=now - then))
    return tuple(sorted(found, key=lambda s: -s.saved_bytes)[:count])


def _possible(plan: Plan, hardware: Hardware, data: DataFacts | None, model: ModelFacts) -> Iterator[dict[str, Any]]:
    rows, micro = plan.per_device_train_batch_size, plan.gradient_accumulation_steps
    if model.can_checkpoint and not plan.activation_checkpointing:
        yield {"activation_checkpointing": True}
    if rows % 2 == 0:
        yield {"per_device_train_batch_size": rows // 2, "gradient_accumulation_steps": 2 * micro}
    if plan.per_device_eval_batch_size > rows:
        yield {"per_device_eval_batch_size": rows}
    if hardware.device == "cuda" and plan.optim.startswith("adamw_torch"):
        yield {"optim": "adamw_bnb_8bit"}
    if plan.dtype == "float32" and plan.mixed_precision is None and hardware.bf16:
        yield {"dtype": "bfloat16"}
    if hardware.device == "cuda" and not plan.quantization and not plan.method.trains_base:
        task = Task.named(plan.task)
        if plan.method.supports(model, task, plan.objective, quantization="nf4", sharding=plan.sharding) is None:
            yield {"quantization": "nf4"}
    shorter = _shorter(plan, data)
    if shorter:
        yield {"max_length": shorter}


def _shorter(plan: Plan, data: DataFacts | None) -> int | None:
    """A length that cuts one row in twenty, where that is much shorter than the longest."""
    if data is None or not data.lengths:
        return None
    lengths = sorted(data.lengths)
    top = min(lengths[-1], plan.max_length or lengths[-1])
    usual = lengths[int(0.95 * (len(lengths) - 1))]
    return usual if usual < 0.8 * top else None
