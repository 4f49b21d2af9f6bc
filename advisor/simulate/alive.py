"""What lives on the device before a step begins: weights, adapters, states, gradients that are summed up, teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tunekit.advisor.simulate.trace import Block
from tunekit.contracts import Objective
from tunekit.task import Task

if TYPE_CHECKING:
    from tunekit.advisor.simulate.loop import Taking


def own(taking: Taking, grads: Sequence[nn.Parameter], kept: Sequence[torch.Tensor]) -> None:
    """Takes what lives before the step into account.

    Args:
        taking: The step.
        grads: Parameters whose gradients are summed up over batches.
        kept: What the method keeps from step to step.
    """
    recorder, model, blocks = taking.recorder, taking.model, block_of(taking.on.stacks)
    recorder.ignore(_on_host(model))
    for p in [*model.parameters(), *model.buffers()]:
        added = p.requires_grad and id(p) not in taking.on.originals
        recorder.own([p], "adapters" if added else "weights", blocks.get(id(p)))
    recorder.ignore(taking.optimizer.counters())
    for p, state in taking.optimizer.states():
        recorder.own([state], "optimizer", blocks.get(id(p)))
    for p in grads:
        p.grad = torch.empty_like(p)
        recorder.own([p.grad], "gradients", blocks.get(id(p)))
    recorder.own(kept, "optimizer")
    if taking.objective is not None:
        _own_beside(taking, taking.objective)


def _own_beside(taking: Taking, objective: Objective) -> None:
    """What the objective has beside the model: a teacher, a projection."""
    for module in objective.beside(taking.model):
        if taking.on.device == "meta":
            _as_read(module, objective, taking.task, taking.model)
        held = [*module.parameters(), *module.buffers()]
        if getattr(objective, "teacher_device", None):
            taking.recorder.ignore(held)
        taking.recorder.own(held, "weights")


def _as_read(module: nn.Module, objective: Any, task: Task, model: nn.Module) -> None:
    """A teacher as its objective reads it, in place: in the student's dtype or its own, or packed."""
    from tunekit.advisor.simulate.quantized import quantize

    if not any(isinstance(m, nn.Embedding) for m in module.modules()):
        return  # a projection, which is the student's
    named = getattr(objective, "teacher_dtype", None)
    dtype = getattr(torch, named) if named else next(p.dtype for p in model.parameters() if p.is_floating_point())
    module.to(dtype)
    if scheme := getattr(objective, "teacher_quantization", None):
        quantize(module, scheme, task)


def _on_host(model: nn.Module) -> list[torch.Tensor]:
    """Weights that PEFT's FRoD keeps on the host while it trains (`runtime_offload_base_weight`)."""
    asked = [m for m in model.modules() if any((vars(m).get("runtime_offload_base_weight") or {}).values())]
    return [m.get_base_layer().weight for m in asked]


def block_of(stacks: Sequence[Sequence[nn.Module]]) -> dict[int, Block]:
    """Block by `id` of its parameters and buffers."""
    return {
        id(t): (s, i)
        for s, stack in enumerate(stacks)
        for i, module in enumerate(stack)
        for t in [*module.parameters(), *module.buffers()]
    }
