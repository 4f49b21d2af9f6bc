"""The heads in AdapterHub's folders: those of plain transformers classes by name, those of `...AdapterModel` by shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import delta_format
from tunekit.adapterhub_files import about, read_json, read_tensors
from tunekit.errors import UnsupportedError
from tunekit.files import write_json
from tunekit.structure import base_name, head_parameters, task_model
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

CONFIG = "head_config.json"
WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")
_TASKS = {"classification": "sequence-classification", "multiple_choice": "multiple-choice", "tagging": "token-classification",
          "question_answering": "question-answering"}  # fmt: skip
"""The library's kinds of heads."""


def head(model: nn.Module, folder: Path, task: Task) -> dict[str, torch.Tensor]:
    """The saved head under our names; empty where there is none, or one for another task.

    Raises:
        UnsupportedError: `adapter-wrong-base` where it is for this task and does not fit.
    """
    if not task.has_head or not any((folder / n).is_file() for n in WEIGHTS):
        return {}
    data = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    given = data.get("config")
    tensors = read_tensors(folder, WEIGHTS)
    wanted = {n: tuple(p.shape) for n, p in model.named_parameters() if n in head_parameters(model, task)}
    if not isinstance(given, dict):
        if data.get("model_class") != type(task_model(model)).__name__:
            return {}
        outside = {n: shape for n, shape in wanted.items() if n in tensors or not n.startswith(f"{base_name(model)}.")}
        delta_format.raise_mismatch(folder, {n: tuple(v.shape) for n, v in tensors.items()}, outside)
        return tensors
    if _TASKS.get(str(given.get("head_type"))) != task.name:
        return {}
    return _flexible(folder, model, given, tensors, wanted)


def _flexible(
    folder: Path,
    model: nn.Module,
    given: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    wanted: Mapping[str, Any],
) -> dict[str, torch.Tensor]:
    """The head of an `...AdapterModel`, whose layers are numbered, where ours has the same layers.

    With fewer layers than ours it stands behind the base's own pooler, which is then the base's.
    """
    theirs, ours = _layers(tensors), _layers({n: n for n in wanted})
    ours = ours[len(ours) - len(theirs) :]
    if len(theirs) != len(ours) or (len(theirs) > 1 and not _same_activation(model, given)):
        why = "the layers of its head are not those of the model's; without the head's files the adapter loads alone"
        raise UnsupportedError(delta_format.wrong_base(folder, why))
    result = {
        name: values[kind]
        for own, values in zip(ours, theirs, strict=True)
        for kind, name in own.items()
        if kind in values
    }
    expected = {name: wanted[name] for own in ours for name in own.values()}
    delta_format.raise_mismatch(folder, {n: tuple(v.shape) for n, v in result.items()}, expected)
    return result


def _layers(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Values by `weight` and `bias`, layer by layer, in the order of their names' numbers."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(values, key=lambda n: [int(x) for x in n.split(".") if x.isdecimal()]):
        layer, _, kind = name.rpartition(".")
        found.setdefault(layer, {})[kind] = values[name]
    return list(found.values())


def _same_activation(model: nn.Module, given: Mapping[str, Any]) -> bool:
    """Whether the activation between the two layers of a head is the model's, read off its own code."""
    import inspect

    name = str(given.get("activation_function"))
    top = task_model(model)
    modules = [
        m
        for n, m in top.named_modules()
        if "pooler" in n.lower() or n in ("classifier", "classification_head", "score")
    ]
    code = "".join(inspect.getsource(type(m)) for m in [*modules, top] if "transformers" in type(m).__module__)
    return name.lower() in code.lower()


def write_head(model: nn.Module, folder: Path, task: Task) -> None:
    """Writes the head of the task, with a pooler inside the base that learns as part of it."""
    import torch

    top, own = task_model(model), dict(model.named_parameters())
    names = head_parameters(model, task)
    torch.save({n: p.detach().cpu().contiguous() for n, p in own.items() if n in names}, folder / WEIGHTS[-1])
    labels = {"num_labels": top.config.num_labels, "label2id": dict(top.config.label2id)}
    write_json(folder / CONFIG, {**about(top), "config": None, "name": None, **labels})
