"""The loop being described: which tensors are alive when, for a step of HF Trainer or of PEFT's benchmark script."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from tunekit.advisor.simulate.alive import block_of, own
from tunekit.advisor.simulate.checkpointing import autocast_of, disable_checkpointing, enable_checkpointing
from tunekit.advisor.simulate.collated import Shape, make_batch
from tunekit.advisor.simulate.kernels import Attention
from tunekit.advisor.simulate.optimizers import Optimizer, make, rank_importance, warm_up
from tunekit.advisor.simulate.trace import EVALUATION, Recorder, Trace
from tunekit.contracts import SUPERVISED, Objective
from tunekit.task import Task

if TYPE_CHECKING:
    from tunekit.advisor.simulate.supplied import Supplied

Loop = Literal["trainer", "peft-benchmark", "trainer-evaluation", "trainer-filling", "peft-evaluation"]
"""Whose step it is: HF Trainer's, that of PEFT's published runs; the former's evaluation, and its pass through the frozen layers for
the store of what they say; the latter with an evaluation after it."""
BETWEEN = "between"
"""The moment at which PEFT's benchmark has emptied the allocator's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """How a step is taken: everything of a plan that the loop looks at."""

    loop: Loop
    device: Literal["cpu", "cuda"]
    optim: str
    clips: bool
    accumulates: bool
    mixed_precision: str | None
    checkpoints: bool
    supplied: bool = False
    """Whether what the frozen layers say of the rows comes with the batch (`frozen_activations: cached`)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prepared:
    """A model with the method applied, to take steps with."""

    model: Any
    stacks: Sequence[Sequence[nn.Module]]
    """Its lists of blocks."""
    head: nn.Module | None = None
    """The module whose input is the last hidden state, where there is one."""
    originals: frozenset[int] = frozenset()
    """`id`s of the base's own parameters; trainable ones that are not among them are adapters."""
    device: str = "meta"
    """`meta`, or `cpu` to watch the real thing."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Taking:
    """All that a step is taken with."""

    recorder: Recorder
    on: Prepared
    task: Task
    shape: Shape
    step: Step
    objective: Objective | None
    """None for the model's own loss."""
    optimizer: Optimizer
    supply: Supplied | None = None
    """What the frozen layers say, where it comes with the batch."""

    @property
    def model(self) -> Any:
        return self.on.model

    def batch(self, shape: Shape) -> dict[str, torch.Tensor]:
        """A batch, counted as activations."""
        batch = make_batch(self.task, self.model, shape, self.on.device)
        batch = batch if self.objective is None else self.objective.weightless(batch, self.model)
        batch = batch if self.supply is None else self.supply.put_into(batch)
        self.recorder.own(batch.values(), "activations")
        return batch


def record_step(
    on: Prepared,
    task: Task,
    shape: Shape,
    step: Step,
    objective: Objective | None = None,
    supply: Supplied | None = None,
) -> tuple[Trace, str | None]:
    """One steady training step of a prepared model: optimizer states exist, nothing is left to initialise.

    Args:
        on: The model.
        task: Whose batch it gets.
        shape: Of the batch.
        step: How the step is taken.
        objective: None for the model's own loss.
        supply: What the frozen layers say, where it comes with the batch.

    Returns:
        The trace, and what had to be assumed of the optimizer.
    """
    model, weightless = on.model, on.device == "meta"
    _set_up(model, step, weightless)
    params = [p for p in model.parameters() if p.requires_grad]
    embeddings = frozenset(id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding))
    optimizer, assumed = make(step.optim, params, step.device, embeddings, model)
    params = [p for p in params if p.requires_grad]
    with _quiet():
        before = Recorder(step.device, shape.padded) if weightless else contextlib.nullcontext()
        kept = warm_up(optimizer, params, before, model)
        recorder = Recorder(step.device, shape.padded, weightless)
        taking = Taking(
            recorder=recorder, on=on, task=task, shape=shape, step=step, objective=objective, optimizer=optimizer, supply=supply
        )  # fmt: skip
        own(taking, params if step.accumulates else (), kept)
        with _followed(taking, params):
            _described(step.loop)(taking)
        return recorder.close(), assumed


def _set_up(model: nn.Module, step: Step, weightless: bool) -> None:
    """The model in the state that the step finds it in."""
    model.train()
    if step.checkpoints:
        enable_checkpointing(model, step if weightless else None)
    else:
        disable_checkpointing(model)
    if hasattr(model, "config"):
        _set_cache(model, step.loop.startswith("peft"))


@contextlib.contextmanager
def _followed(taking: Taking, params: Sequence[nn.Parameter]) -> Iterator[None]:
    """The recorder knows which block runs, and weightless attention runs as the device's; nothing of it is left afterwards."""
    handles = taking.recorder.watch(taking.on.stacks, taking.on.head)
    handles += taking.supply.attach(taking.model) if taking.supply is not None else []
    try:
        with Attention(taking.step.device) if taking.on.device == "meta" else contextlib.nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for p in params:
            p.grad = None


def _set_cache(model: nn.Module, used: bool) -> None:
    for config in {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}.values():
        if hasattr(config, "use_cache"):
            config.use_cache = used


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection in the middle of a step: what lies in a cycle would be freed at a random moment."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _forward(taking: Taking, batch: Mapping[str, Any]) -> tuple[torch.Tensor, Any]:
    """Loss and outputs, as the Trainer (through accelerate) computes them."""
    model, step, objective = taking.model, taking.step, taking.objective
    with autocast_of(step, next(iter(batch.values())).device.type):
        if objective is not None:
            loss, outputs = objective.loss(model, batch)
        else:
            outputs = model(**batch)
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
    if step.mixed_precision:
        # accelerate turns what an autocast forward returns into fp32 copies (accelerate.utils.convert_outputs_to_fp32)
        outputs = {
            k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in outputs.items()
        }
    return loss, outputs


def _trainer(taking: Taking) -> None:
    """`Trainer.training_step` and what follows it: outputs die with `compute_loss`, gradients after the update, the batch
    with the next one."""
    recorder, batch = taking.recorder, taking.batch(taking.shape)
    with recorder:
        recorder.moment = "forward"
        token = SUPERVISED.set(taking.shape.supervised)
        loss, outputs = _forward(taking, batch)
        SUPERVISED.reset(token)
        del outputs
        backward_and_update(taking, loss)
        recorder.moment = "end"
        taking.model.zero_grad()


def _trainer_evaluation(taking: Taking) -> None:
    """`Trainer.prediction_step` between two training steps: no gradients are alive, the optimizer's states are.

    The metrics of a batch are worked out at once (`batch_eval_metrics`), so that no logits are gathered over batches.
    """
    recorder, batch = taking.recorder, taking.batch(taking.shape)
    taking.model.eval()
    with recorder, torch.no_grad():
        recorder.turn(EVALUATION)
        loss, outputs = _forward(taking, batch)
        recorder.turn("end")
        del loss, outputs
    taking.model.train()


def backward_and_update(taking: Taking, loss: torch.Tensor) -> None:
    """The second half of a training step, of whichever loop."""
    recorder, model = taking.recorder, taking.model
    recorder.moment = "backward"
    loss.backward()
    blocks = block_of(taking.on.stacks)
    grads = [(p, p.grad) for p in model.parameters() if p.grad is not None]
    recorder.mark([g for _, g in grads], "gradients")
    recorder.adopt([(g, blocks.get(id(p))) for p, g in grads])
    del grads
    recorder.moment = "clip"
    if taking.step.clips:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    recorder.moment = "optimizer"
    cost = taking.optimizer.step()
    if cost is not None:
        recorder.add_cost(cost)
    rank_importance(model)


def _described(loop: Loop) -> Callable[[Taking], None]:
    from tunekit.advisor.simulate.peft_loop import peft_benchmark, peft_evaluation
    from tunekit.advisor.simulate.supplied import filling

    return {
        "trainer": _trainer,
        "trainer-evaluation": _trainer_evaluation,
        "trainer-filling": filling,
        "peft-benchmark": peft_benchmark,
        "peft-evaluation": peft_evaluation,
    }[loop]
