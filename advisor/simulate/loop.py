"""The loop being described: which tensors are alive when, for a step of HF Trainer or of PEFT's benchmark script."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from tunekit.advisor.simulate.kernels import Attention
from tunekit.advisor.simulate.optimizers import make, rank_importance, warm_up
from tunekit.advisor.simulate.trace import EVALUATION, Block, Recorder, Trace
from tunekit.contracts import SUPERVISED, Objective
from tunekit.task import Task

Loop = Literal["trainer", "peft-benchmark", "trainer-evaluation", "peft-evaluation"]
"""Whose step it is: HF Trainer's, that of PEFT's published runs; the former's evaluation, and the latter with one after it."""
BETWEEN = "between"
"""The moment at which PEFT's benchmark has emptied the allocator's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The batch of one step. Lengths in tokens, padding included."""

    batch: int
    length: int
    target_length: int = 0
    """For seq2seq."""
    choices: int = 1
    """For multiple choice."""
    previous_length: int = 0
    """For PEFT's benchmark: the batch before, whose outputs are still alive."""
    padded: bool = True
    """Whether any row is shorter than the longest."""
    supervised: float = 1.0
    """Share of the positions that have a label, where the loss leaves out the others."""


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


def make_batch(task: Task, model: nn.Module, shape: Shape, device: str = "meta") -> dict[str, torch.Tensor]:
    """The tensors a collator makes for the task: without values on `meta`, zeros with an end token a row elsewhere."""
    rows: tuple[int, ...] = (shape.batch, shape.length)
    if task.name == "multiple-choice":
        rows = (shape.batch, shape.choices, shape.length)
    batch = {"input_ids": _whole(rows, device), "attention_mask": _mask(rows, shape.padded, device)}
    config: Any = getattr(model, "config", None)
    if device != "meta" and isinstance(getattr(config, "eos_token_id", None), int):
        batch["input_ids"][..., -2] = config.eos_token_id
    if task.name in ("causal-lm", "token-classification"):
        batch["labels"] = _whole(rows, device)
    elif task.name == "seq2seq":
        batch["labels"] = _whole((shape.batch, shape.target_length or shape.length), device)
    elif task.name == "question-answering":
        batch |= {"start_positions": _whole(rows[:1], device), "end_positions": _whole(rows[:1], device)}
    else:
        batch["labels"] = _class_labels(shape.batch, config, device)
    return batch


def _whole(shape: tuple[int, ...], device: str) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long, device=device)


def _mask(shape: tuple[int, ...], padded: bool, device: str) -> torch.Tensor:
    mask = torch.ones(shape, dtype=torch.long, device=device)
    if padded and device != "meta":
        mask[..., -1:] = 0
        mask[0] = 1
    return mask


def _class_labels(batch: int, config: Any, device: str) -> torch.Tensor:
    problem, classes = getattr(config, "problem_type", None), getattr(config, "num_labels", 1)
    if problem == "multi_label_classification":
        return torch.zeros((batch, classes), device=device)
    if problem == "regression":
        return torch.zeros((batch,) if classes == 1 else (batch, classes), device=device)
    return _whole((batch,), device)


def record_step(
    model: nn.Module,
    stacks: Sequence[Sequence[nn.Module]],
    head: nn.Module | None,
    task: Task,
    shape: Shape,
    step: Step,
    objective: Objective | None = None,
    originals: frozenset[int] = frozenset(),
    device: str = "meta",
) -> tuple[Trace, str | None]:
    """One steady training step of a prepared model: optimizer states exist, nothing is left to initialise.

    Args:
        model: The model with the method applied, on `device`.
        stacks: Its lists of blocks.
        head: The module whose input is the last hidden state, where there is one.
        task: Whose batch it gets.
        shape: Of the batch.
        step: How the step is taken.
        objective: None for the model's own loss.
        originals: `id`s of the base's own parameters; trainable ones that are not among them are adapters.
        device: `meta`, or `cpu` to watch the real thing.

    Returns:
        The trace, and what had to be assumed of the optimizer.
    """
    model.train()
    if step.checkpoints:
        enable_checkpointing(model, step if device == "meta" else None)
    else:
        disable_checkpointing(model)
    if hasattr(model, "config"):
        _set_cache(model, step.loop.startswith("peft"))
    params = [p for p in model.parameters() if p.requires_grad]
    embeddings = frozenset(id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding))
    optimizer, assumed = make(step.optim, params, step.device, embeddings, model)
    params = [p for p in params if p.requires_grad]
    weightless = device == "meta"
    with _quiet():
        if weightless:
            kept = warm_up(optimizer, params, Recorder(step.device, shape.padded), model)
        else:
            kept = warm_up(optimizer, params, contextlib.nullcontext(), model)
        recorder = Recorder(step.device, shape.padded, weightless)
        _own(recorder, model, stacks, optimizer, params if step.accumulates else (), originals)
        recorder.own(kept, "optimizer")
        for module in objective.beside(model) if objective is not None else ():
            if weightless:
                _as_read(module, objective, task, model)
            held = [*module.parameters(), *module.buffers()]
            if getattr(objective, "teacher_device", None):
                recorder.ignore(held)
            recorder.own(held, "weights")
        handles = recorder.watch(stacks, head)
        run = _described(step.loop)
        try:
            with Attention(step.device) if weightless else contextlib.nullcontext():
                run(recorder, model, stacks, task, shape, step, objective, optimizer, device)
        finally:
            for handle in handles:
                handle.remove()
            for p in params:
                p.grad = None
        return recorder.close(), assumed


def enable_checkpointing(model: nn.Module, step: Step | None = None) -> None:
    """Turns activation checkpointing on, in the form that needs no gradient at a block's input.

    Args:
        model: The model with the method applied.
        step: For weightless tensors: the recomputation runs inside the backward pass, where function modes that were
            entered outside are not in force, so that it has to enter them itself.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    kwargs: dict[str, Any] = {"use_reentrant": False}
    _leave_inputs(inner)
    if step is not None:
        kwargs["context_fn"] = lambda: (contextlib.nullcontext(), _recomputation(step))
    if hasattr(inner, "activation_checkpointing_enable"):
        inner.activation_checkpointing_enable(kwargs)
    else:
        inner.gradient_checkpointing_enable(kwargs)


def disable_checkpointing(model: nn.Module) -> None:
    """Turns activation checkpointing off where an earlier step turned it on."""
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not any(getattr(m, "gradient_checkpointing", False) for m in inner.modules()):
        return
    if hasattr(inner, "activation_checkpointing_disable"):
        inner.activation_checkpointing_disable()
    else:
        inner.gradient_checkpointing_disable()
    _leave_inputs(inner)


def _leave_inputs(inner: Any) -> None:
    """Takes back that the embeddings' output wants a gradient, which transformers asks for anew at each time and leaves."""
    if hasattr(inner, "disable_input_require_grads"):
        inner.disable_input_require_grads()


@contextlib.contextmanager
def _recomputation(step: Step) -> Iterator[None]:
    with Attention(step.device), _autocast(step):
        yield


def _autocast(step: Step, device: str = "meta") -> contextlib.AbstractContextManager[Any]:
    from tunekit.advisor.simulate.autocast import Autocast

    if not step.mixed_precision:
        return contextlib.nullcontext()
    if device != "meta":
        return torch.autocast(device, dtype=torch.bfloat16 if step.mixed_precision == "bf16" else torch.float16)
    return Autocast(step.mixed_precision, step.device)


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


def _own(
    recorder: Recorder,
    model: nn.Module,
    stacks: Sequence[Sequence[nn.Module]],
    optimizer: Any,
    grads: Sequence[nn.Parameter],
    originals: frozenset[int],
) -> None:
    """Takes what lives before the step into account: weights, adapters, states, and gradients that are summed up."""
    blocks = block_of(stacks)
    recorder.ignore(_on_host(model))
    for p in [*model.parameters(), *model.buffers()]:
        added = p.requires_grad and id(p) not in originals
        recorder.own([p], "adapters" if added else "weights", blocks.get(id(p)))
    recorder.ignore(optimizer.counters())
    for p, state in optimizer.states():
        recorder.own([state], "optimizer", blocks.get(id(p)))
    for p in grads:
        p.grad = torch.empty_like(p)
        recorder.own([p.grad], "gradients", blocks.get(id(p)))


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


def _forward(
    recorder: Recorder, model: nn.Module, batch: Mapping[str, Any], step: Step, objective: Objective | None
) -> tuple[torch.Tensor, Any]:
    """Loss and outputs, as the Trainer (through accelerate) computes them."""
    with _autocast(step, next(iter(batch.values())).device.type):
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


def _trainer(
    recorder: Recorder,
    model: nn.Module,
    stacks: Any,
    task: Task,
    shape: Shape,
    step: Step,
    objective: Objective | None,
    optimizer: Any,
    device: str,
) -> None:
    """`Trainer.training_step` and what follows it: outputs die with `compute_loss`, gradients after the update, the batch
    with the next one."""
    batch = make_batch(task, model, shape, device)
    batch = batch if objective is None else objective.weightless(batch, model)
    recorder.own(batch.values(), "activations")
    with recorder:
        recorder.moment = "forward"
        token = SUPERVISED.set(shape.supervised)
        loss, outputs = _forward(recorder, model, batch, step, objective)
        SUPERVISED.reset(token)
        del outputs
        backward_and_update(recorder, model, stacks, step, optimizer, loss)
        recorder.moment = "end"
        model.zero_grad()


def _trainer_evaluation(
    recorder: Recorder,
    model: nn.Module,
    stacks: Any,
    task: Task,
    shape: Shape,
    step: Step,
    objective: Objective | None,
    optimizer: Any,
    device: str,
) -> None:
    """`Trainer.prediction_step` between two training steps: no gradients are alive, the optimizer's states are.

    The metrics of a batch are worked out at once (`batch_eval_metrics`), so that no logits are gathered over batches.
    """
    batch = make_batch(task, model, shape, device)
    recorder.own(batch.values(), "activations")
    model.eval()
    with recorder, torch.no_grad():
        recorder.turn(EVALUATION)
        loss, outputs = _forward(recorder, model, batch, step, objective)
        recorder.turn("end")
        del loss, outputs
    model.train()


def backward_and_update(
    recorder: Recorder, model: nn.Module, stacks: Any, step: Step, optimizer: Any, loss: torch.Tensor
) -> None:
    recorder.moment = "backward"
    loss.backward()
    blocks = block_of(stacks)
    grads = [(p, p.grad) for p in model.parameters() if p.grad is not None]
    recorder.mark([g for _, g in grads], "gradients")
    recorder.adopt([(g, blocks.get(id(p))) for p, g in grads])
    del grads
    recorder.moment = "clip"
    if step.clips:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    recorder.moment = "optimizer"
    cost = optimizer.step()
    if cost is not None:
        recorder.add_cost(cost)
    rank_importance(model)


def _described(loop: Loop) -> Callable[..., None]:
    from tunekit.advisor.simulate.peft_loop import peft_benchmark, peft_evaluation

    return {
        "trainer": _trainer,
        "trainer-evaluation": _trainer_evaluation,
        "peft-benchmark": peft_benchmark,
        "peft-evaluation": peft_evaluation,
    }[loop]
