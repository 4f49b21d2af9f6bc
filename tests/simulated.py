"""What the simulator's tests share: steps of tiny models, recorded without weights and on real tensors."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

import zoo
from tunekit.advisor.simulate.collated import Shape
from tunekit.advisor.simulate.depth import find_stacks
from tunekit.advisor.simulate.loop import Prepared, Step, record_step
from tunekit.advisor.simulate.record import output_head
from tunekit.advisor.simulate.supplied import supplied
from tunekit.advisor.simulate.trace import Trace
from tunekit.advisor.weightless import build, prepare_config
from tunekit.contracts import Method
from tunekit.task import Task

SHAPE = Shape(batch=3, length=24, target_length=10, choices=2)


def step(**changes: Any) -> Step:
    """A plain step of the Trainer on the CPU."""
    plain: dict[str, Any] = {
        "loop": "trainer", "device": "cpu", "optim": "adamw_torch", "clips": True, "accumulates": False,
        "mixed_precision": None, "checkpoints": False,
    }  # fmt: skip
    return Step(**{**plain, **changes})


def recorded(
    config: PretrainedConfig | str,
    task_name: str,
    method: Method,
    *,
    weightless: bool,
    shape: Shape = SHAPE,
    **changes: Any,
) -> Trace:
    """One step of a model with a method on it; random weights where it is not weightless."""
    import transformers

    task = Task.named(task_name)
    made = zoo.config(config) if isinstance(config, str) else config
    if weightless:
        model = build(made, task, 3)
    else:
        torch.manual_seed(0)
        model = getattr(transformers, task.auto_class).from_config(prepare_config(made, task, 3))
    stacks = [list(blocks) for _, blocks in find_stacks(model)]
    head, originals = output_head(model), frozenset(id(p) for p in model.parameters())
    with torch.device("meta" if weightless else "cpu"):
        model = method.apply(model, task)
    device = "meta" if weightless else "cpu"
    on = Prepared(model=model, stacks=stacks, head=head, originals=originals, device=device)
    taken = step(**changes)
    supply = supplied(on, task, taken) if taken.supplied else None
    return record_step(on, task, shape, taken, None, supply)[0]


def peak_bytes(trace: Trace) -> int:
    """Most bytes alive at once."""
    alive = most = 0
    for segment in trace.segments:
        for event in segment.events:
            alive += trace.sizes[event] if event >= 0 else -trace.sizes[~event]
            most = max(most, alive)
    return most
