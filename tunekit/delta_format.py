"""Our own folder format for what a method learnt: `model.safetensors` with those tensors, `tunekit.json` with the rest.

The weights carry the name that transformers' Trainer looks for, so that its own resume and best-model loading
(`load_state_dict`, not strict) work on such a folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import TunekitError, UnreadableError, UnsupportedError
from tunekit.files import write_json
from tunekit.finding import Finding, error
from tunekit.snapshot import prepared
from tunekit.structure import class_name, task_model, tasks_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tunekit.contracts import Method

CONFIG = "tunekit.json"
WEIGHTS = "model.safetensors"
KIND = "tunekit-learnt"
SCHEMA = 1


def save(
    model: nn.Module,
    folder: Path,
    method: Method,
    names: Iterable[str],
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes the tensors of these names and what is needed to attach them again; each file is whole or not there.

    Args:
        model: The model that learnt.
        folder: Where to; made where it does not exist.
        method: The method, written with its settings.
        names: Parameter names.
        state_dict: The model's gathered state; None: read from the model.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    values = model.state_dict() if state_dict is None else state_dict
    tensors = {name: values[name].detach().cpu().contiguous() for name in sorted(names)}
    aside = folder / f".{WEIGHTS}.{os.getpid()}.part"
    save_file(tensors, aside, metadata={"format": "pt"})
    aside.replace(folder / WEIGHTS)
    write_json(folder / CONFIG, describe(model, method))


def describe(model: nn.Module, method: Method) -> dict[str, Any]:
    """What `tunekit.json` says: the method with its settings, the task, and which base it belongs to."""
    what, base = prepared(model), task_model(model)
    task = what.task if what else next(iter(tasks_of(model)), None)
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "method": method.to_dict(),
        "task": task.name if task else None,
        "base": {"class": class_name(base), "name": getattr(base, "name_or_path", "") or None},
    }


def read_config(folder: Path) -> dict[str, Any]:
    """What `tunekit.json` says.

    Raises:
        UnreadableError: `adapter-corrupted` where it is no JSON object of ours, `adapter-schema` where it is newer.
    """
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UnreadableError(corrupted(path, e)) from None
    if not isinstance(data, dict) or data.get("kind") != KIND or not isinstance(data.get("method"), dict):
        raise UnreadableError(corrupted(path, f"it is no `{KIND}` file with a `method`"))
    if not isinstance(data.get("schema"), int) or data["schema"] > SCHEMA:
        raise UnreadableError(
            error(
                "adapter-schema",
                f"{path}: schema {data.get('schema')!r}",
                f"this tunekit reads up to {SCHEMA}",
                "upgrade tunekit-hf",
            )
        )
    return data


def corrupted(path: Path, reason: Any) -> Finding:
    """The finding for a file that is there and not what it should be."""
    text = " ".join(str(reason).split())[:160]
    return error("adapter-corrupted", f"{path}", text, "save it again, or fetch an intact copy")


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, from its header; no value is read.

    Raises:
        UnreadableError: `adapter-corrupted`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise UnreadableError(corrupted(path, e)) from None


def load_into(model: nn.Module, folder: Path, names: Iterable[str]) -> None:
    """Copies the saved tensors into a model that the method was applied to; nothing is copied when one does not fit.

    Args:
        model: The model with the method on it.
        folder: What `save` wrote.
        names: The parameters that the method trains in this model: exactly those must be in the file.

    Raises:
        UnreadableError: `adapter-corrupted`.
        UnsupportedError: `adapter-wrong-base`.
    """
    import torch
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise UnreadableError(corrupted(folder / WEIGHTS, "no such file"))
    own = dict(model.named_parameters())
    wanted = {name: tuple(own[name].shape) for name in names}
    raise_mismatch(folder, shapes(folder / WEIGHTS), wanted)
    values = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def raise_mismatch(folder: Path, have: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    """Refuses tensors whose names or shapes are not those of the model.

    Raises:
        UnsupportedError: `adapter-wrong-base` with the first differences.
    """
    faults = [f"{n} is not in the model" for n in sorted({*have} - {*want})]
    faults += [f"{n} is not in the folder" for n in sorted({*want} - {*have})]
    faults += [
        f"{n} has shape {list(have[n])}, in the model {list(want[n])}"
        for n in sorted({*have} & {*want})
        if have[n] != want[n]
    ]
    if faults:
        raise UnsupportedError(
            wrong_base(folder, f"{'; '.join(faults[:3])}{f' and {len(faults) - 3} more' if len(faults) > 3 else ''}")
        )


def wrong_base(folder: Path, reason: str) -> Finding:
    """The finding for an adapter that belongs to another model."""
    return error(
        "adapter-wrong-base", f"{folder}", f"it was not trained on this model: {reason}",
        "load the base model (and the number of labels) that it was trained on",
    )  # fmt: skip


def check_base(folder: Path, model: nn.Module) -> None:
    """Refuses a base of another class than the one that learnt, before anything is touched.

    Raises:
        UnsupportedError: `adapter-wrong-base`.
    """
    base = read_config(folder).get("base")
    saved = base.get("class") if isinstance(base, dict) else None
    if saved and saved != class_name(model):
        raise UnsupportedError(wrong_base(folder, f"it belongs to a {saved}, this is a {class_name(model)}"))


def reason(e: Exception) -> str:
    """An upstream exception in one short line."""
    text = str(e) if isinstance(e, TunekitError) else f"{type(e).__name__}: {e}"
    return " ".join(text.split())[:200]
