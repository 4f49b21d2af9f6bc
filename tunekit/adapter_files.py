"""Folders of saved bottleneck adapters, ours and AdapterHub's, read into an adapter that lies on a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import adapterhub, adapterhub_head, delta_format
from tunekit.adapterhub_files import copy_into, read_json
from tunekit.bottleneck_config import BottleneckConfig
from tunekit.discovery import find
from tunekit.errors import MissingError, UnreadableError, UnsupportedError
from tunekit.finding import error
from tunekit.structure import head_parameters
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

_NAMED = re.compile(r"\.adapters\.([^.]+)\.")


def read_config(folder: Path) -> BottleneckConfig:
    """The settings of the adapter in a folder.

    Raises:
        MissingError: `adapter-missing`.
        UnreadableError: `adapter-corrupted`.
        UnsupportedError: `adapter-kind` for another method's folder.
    """
    if adapterhub.holds(folder):
        return adapterhub.read_config(folder).config
    if not (folder / delta_format.CONFIG).is_file():
        if (folder / adapterhub.CONFIG).is_file():
            # A damaged one is not known as AdapterHub's above, and is there all the same.
            read_json(folder / adapterhub.CONFIG)
        seen = (
            f"it holds neither {delta_format.CONFIG} nor {adapterhub.CONFIG}" if folder.is_dir() else "no such folder"
        )
        fix = "name a folder that training with `bottleneck-adapter` saved"
        raise MissingError(error("adapter-missing", f"adapter {str(folder)!r}", seen, fix))
    saved = delta_format.read_config(folder)["method"]
    method: Any = find("method", str(saved.get("kind"))).from_dict(saved)
    if not isinstance(getattr(method, "config", None), BottleneckConfig):
        why, fix = f"it was saved by `{method.slug}`", "name a folder of `bottleneck-adapter`"
        raise UnsupportedError(error("adapter-kind", f"adapter {str(folder)!r}", why, fix))
    return method.config


def fill(model: nn.Module, folder: Path, name: str, task: Task, with_head: bool = True) -> None:
    """Copies a saved adapter into one of the same settings that lies on the model, and its head where it is wanted.

    Args:
        model: With the adapter `name` on it, and a head that is of this task.
        folder: What `save_pretrained` or AdapterHub wrote.
        name: The adapter's name on the model, whatever it was called when it was saved.
        task: Whose head.
        with_head: Whether the head must be there too and is copied.

    Raises:
        UnreadableError: `adapter-corrupted`, `adapter-pickled`.
        UnsupportedError: `adapter-wrong-base`; nothing is copied then.
    """
    if adapterhub.holds(folder):
        return adapterhub.load_into(model, folder, task, name, with_head)
    values = tensors(folder, name)
    wanted = own_shapes(model, name) | (head_shapes(model, task) if with_head else {})
    kept = {n: v for n, v in values.items() if with_head or f".adapters.{name}." in n}
    delta_format.raise_mismatch(folder, {n: tuple(v.shape) for n, v in kept.items()}, wanted)
    return copy_into(model, kept)


def head_values(model: nn.Module, folder: Path, task: Task) -> dict[str, torch.Tensor]:
    """The saved head under the model's names where it fits the model's; empty where it is another one."""
    if adapterhub.holds(folder):
        return adapterhub_head.head(model, folder, task)
    wanted = head_shapes(model, task)
    values = {n: v for n, v in tensors(folder, "-").items() if n in wanted}
    return values if {n: tuple(v.shape) for n, v in values.items()} == wanted else {}


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of our own folder, with the adapter called `name`.

    Raises:
        UnreadableError: `adapter-corrupted`.
    """
    from safetensors.torch import load_file

    path = folder / delta_format.WEIGHTS
    if not path.is_file():
        raise UnreadableError(delta_format.corrupted(path, "no such file"))
    delta_format.shapes(path)
    return {_NAMED.sub(f".adapters.{name}.", key): value for key, value in load_file(path).items()}


def own_shapes(model: nn.Module, name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an adapter's parameters."""
    from tunekit.bottleneck import parameters_of

    wanted = parameters_of(model, name)
    return {n: tuple(p.shape) for n, p in model.named_parameters() if n in wanted}


def head_shapes(model: nn.Module, task: Task) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the head's parameters."""
    wanted = head_parameters(model, task)
    return {n: tuple(p.shape) for n, p in model.named_parameters() if n in wanted}
