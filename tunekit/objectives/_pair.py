"""A live student and its teacher: the teacher is read and compared once, and both are asked the same batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunekit.contracts import OWN_MODULE
from tunekit.errors import MissingPackageError, UnsupportedError
from tunekit.finding import error
from tunekit.objectives import _features, _taught
from tunekit.objectives._class_losses import class_losses
from tunekit.objectives._distillation_faults import missing_teacher, support_fault
from tunekit.objectives._divergence import divergence
from tunekit.objectives._live import on_meta, questions, unwrapped
from tunekit.objectives._teacher import (
    Source,
    check_pair,
    check_words,
    read_teacher,
    tokenizer_beside,
    weightless_teacher,
    words_of,
)
from tunekit.objectives._vocabulary import answers, decoder_targets, with_decoder_inputs
from tunekit.own_module import put_own_module
from tunekit.structure import blocks
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn


# ------------------------------------------------------------------------------------------------- made ready
def teacher_of(d: Any, model: nn.Module) -> Any:
    """The teacher of a student, read and compared at the first time."""
    held, task, eager = d._held, d.task_of(model), d.attention_weight > 0
    if on_meta(model):
        if "meta" not in held:
            held["meta"] = weightless_teacher(d.teacher, d.teacher_revision, held.get("given"), task, eager)
        return held["meta"]
    if "ready" not in held:
        if fault := support_fault(d, task, given="given" in held):
            raise missing_teacher(fault)
        teacher = held.get("given")
        if teacher is None:
            first = next(p for p in model.parameters() if p.is_floating_point())
            teacher = read_teacher(source(d, first.dtype, first.device), task, unwrapped(model).config)
        check_pair(model, teacher)
        held["ready"] = teacher
    return held["ready"]


def source(d: Any, dtype: torch.dtype, device: torch.device) -> Source:
    """Where the settings say that the teacher is read from; dtype and device where they do not."""
    import torch

    return Source(
        name=str(d.teacher), revision=d.teacher_revision, adapter=d.teacher_adapter, quantization=d.teacher_quantization,
        dtype=getattr(torch, d.teacher_dtype) if d.teacher_dtype else dtype,
        device=torch.device(d.teacher_device) if d.teacher_device else device, eager=d.attention_weight > 0,
    )  # fmt: skip


def make_ready(d: Any, model: nn.Module, teacher: nn.Module, tokenizer: Any) -> None:
    """Compares words and layers, and puts a projection into the student where the widths differ."""
    if tokenizer is not None:
        check_words((words_of(model), words_of(teacher)), tokenizer, tokenizer_beside(teacher))
    if d.attention_weight:
        _features.check_attention(model, "student")
        _features.check_attention(teacher, "teacher")
    if d.matches_layers and d.layer_map:
        _check_map(d.layer_map, model, teacher)
    if d.hidden_weight and (maps := projection_of(d, model, teacher)) is not None:
        put_own_module(model, maps)
    if d.kernel == "liger":
        _check_liger()


def _check_map(chosen: tuple[int, ...], model: nn.Module, teacher: nn.Module) -> None:
    """One number for each of the student's layers, none beyond the teacher's."""
    mine, theirs = ([len(layers) for _, layers in blocks(m)] for m in (model, teacher))
    if any(len(chosen) != n for n in mine) or any(max(chosen) > n for n in theirs):
        sizes = f"a student of {'+'.join(map(str, mine))} layers and a teacher of {'+'.join(map(str, theirs))}"
        raise UnsupportedError(
            error("distillation-layer-map", f"`layer_map` {list(chosen)} with {sizes}", "it names one layer of the teacher for each of the student's", "leave it empty, which spreads them evenly")
        )  # fmt: skip


def _check_liger() -> None:
    import torch

    from tunekit.objectives._liger import is_installed

    if not is_installed():
        raise MissingPackageError(error("package-missing", "`kernel: liger`", "it needs liger-kernel", "pip install liger-kernel"))  # fmt: skip
    if not torch.cuda.is_available():
        raise UnsupportedError(error("distillation-liger", "`kernel: liger` without a GPU", "its kernels run on GPUs", "set `kernel: auto`"))  # fmt: skip


def projection_of(d: Any, model: nn.Module, teacher: nn.Module) -> Any:
    """The learnt maps of a student: those in it, or new ones; None where the widths are equal."""
    found = unwrapped(model)._modules.get(OWN_MODULE)
    if found is not None or not on_meta(model):
        return _features.projection_for(model, teacher) if found is None else found
    if "maps" not in d._held:
        d._held["maps"] = _features.projection_for(model, teacher)
    return d._held["maps"]


# ------------------------------------------------------------------------------------------------- the losses
def over_classes(d: Any, model: nn.Module, inputs: Mapping[str, torch.Tensor], task: Task) -> tuple[Any, Any, Any]:
    """Sum of the loss, number of items, outputs, for the tasks whose answers are few."""
    outputs = model(**questions(model, inputs), **_asked(d))
    taught = _classes_taught(d, model, inputs, task, outputs)
    weight = 1.0 if taught is None else d.hard_weight
    losses = class_losses(
        task, unwrapped(model).config, outputs, outputs if taught is None else taught, inputs,
        lambda s, t: divergence(s, t, d.divergence, d.temperature, d.beta),
    )  # fmt: skip
    mixed = losses.hard if weight == 1 else weight * losses.hard + (1 - weight) * losses.soft
    total = mixed.where(losses.kept, 0.0).sum()
    if d.matches_layers and taught is not None:
        rows = len(losses.kept)
        total = total + (_inside(d, model, outputs, taught, inputs, None, rows) * losses.kept.reshape(rows, -1).sum(1)).sum()  # fmt: skip
    return total, losses.kept.sum(), _without_insides(outputs)


def _classes_taught(d: Any, model: nn.Module, inputs: Mapping[str, torch.Tensor], task: Task, outputs: Any) -> Any:
    """The teacher's outputs or, from the cache, its logits under the same names; None where the labels are all there is."""
    if not d.is_cached:
        return _ask(d, model, questions(d.teacher_of(model), inputs)) if d.asks_teacher else None
    if on_meta(model):
        return outputs
    logits = inputs.get("teacher_logits")
    _check_answered(model, logits)
    return None if logits is None else _taught.as_outputs(task, logits)


def over_vocabulary(d: Any, model: nn.Module, inputs: Mapping[str, torch.Tensor], task: Task) -> tuple[Any, Any, Any]:
    """Sum of the loss, number of items, outputs; while training these hold the first position's logits only."""
    import torch

    labels, mixed = inputs["labels"], d.mixed()
    targets = decoder_targets(model, labels)
    asked = with_decoder_inputs(model, questions(model, inputs), labels)
    said = answers(model, {**asked, **_asked(d)}, whole=not model.training)
    items = targets.ne(-100)
    if d.is_cached:
        found = _on_meta(d, targets) if on_meta(model) else inputs
        _check_answered(model, found.get("teacher_ids"))
        total = (
            mixed.labels_only(said, targets)
            if found.get("teacher_ids") is None
            else mixed.against_cached(said, found, targets, d._held.get("vocabulary", words_of(model)))
        )
    elif d.asks_teacher:
        teacher = d.teacher_of(model)
        with torch.no_grad():
            decoder = {k: v for k, v in asked.items() if k == "decoder_input_ids"}
            right = answers(teacher, {**_there(teacher, {**questions(teacher, inputs), **decoder}), **_asked(d)})
        total = mixed.against(said, right, targets)
        if d.matches_layers:
            inside = _inside(d, model, said.outputs, right.outputs, inputs, targets, len(labels))
            total = total + (inside * items.sum(1)).sum()
    else:
        total = mixed.labels_only(said, targets)
    return total, items.sum(), _without_insides(said.outputs)


def _asked(d: Any) -> dict[str, bool]:
    """What both are asked to return beside their answers."""
    return {
        **(_features.ASKED if d.matches_layers and d.hidden_weight else {}),
        **(_features.ASKED_ATTENTION if d.matches_layers and d.attention_weight else {}),
    }


def _ask(d: Any, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    import torch

    teacher = d.teacher_of(model)
    with torch.no_grad():
        return teacher(**_there(teacher, inputs), **_asked(d))


def _there(teacher: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs on the teacher's device."""
    device = next(p.device for p in teacher.parameters())
    return {k: v.to(device) for k, v in inputs.items()}


def _inside(
    d: Any, model: nn.Module, outputs: Any, taught: Any, inputs: Mapping[str, torch.Tensor], targets: Any, rows: int
) -> torch.Tensor:  # fmt: skip
    """(rows,): the weighted distance of what lies inside, averaged over the sequences of a row (its choices)."""
    teacher = d.teacher_of(model)
    mine, theirs = (_features.stacks(m, o, inputs, targets) for m, o in ((model, outputs), (teacher, taught)))
    found = None
    if d.hidden_weight:
        maps = projection_of(d, model, teacher)
        found = d.hidden_weight * _features.hidden_rows(mine, theirs, d.layer_map, d.hidden_loss, maps)
    if d.attention_weight and all(stack.attention for stack in (*mine, *theirs)):  # `ready` refuses other kernels
        attention = d.attention_weight * _features.attention_rows(mine, theirs, d.layer_map)
        found = attention if found is None else found + attention
    return mine[0].mask.new_zeros(rows).float() if found is None else found.reshape(rows, -1).mean(1)


def _without_insides(outputs: Any) -> Any:
    """The outputs without hidden states and attention, which an evaluation would gather."""
    if not any("hidden_states" in k or "attentions" in k for k in outputs):
        return outputs
    return {k: v for k, v in outputs.items() if "hidden_states" not in k and "attentions" not in k}


def _check_answered(model: nn.Module, found: Any) -> None:
    if found is None and model.training and not on_meta(model):
        raise UnsupportedError(
            error("distillation-cache-rows", "a training batch without the teacher's answers", "they are joined to the rows when the trainer is made", "use `tunekit.trainer`, or `TrainerMixin` with a `datasets.Dataset`")
        )  # fmt: skip


def _on_meta(d: Any, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Answers of the right shape without values."""
    import torch

    shape = (*targets.shape, d.top_k)
    kinds = (torch.int64, torch.float32, torch.float32)
    made = zip(_taught.TOP, (shape, shape, targets.shape), kinds, strict=True)
    return {name: torch.empty(s, dtype=k, device=targets.device) for name, s, k in made}
