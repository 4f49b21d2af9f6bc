"""What AdapterHub's files have in common: JSON objects, tensors in two formats, and what they say of their model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import delta_format
from tunekit.errors import UnreadableError
from tunekit.finding import Finding, error
from tunekit.structure import class_name

if TYPE_CHECKING:
    import torch
    from torch import nn

VERSION = "adapters.1.3.0"
"""The library whose format is written."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UnreadableError: `adapter-corrupted`.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UnreadableError(delta_format.corrupted(path, e)) from None
    if not isinstance(data, dict):
        raise UnreadableError(delta_format.corrupted(path, "it is no JSON object"))
    return data


def read_tensors(folder: Path, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors of the first of these files that is there; a pickle is read as tensors and nothing else.

    Raises:
        UnreadableError: `adapter-corrupted`, `adapter-pickled` where a pickle holds anything but tensors.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = next((folder / n for n in names if (folder / n).is_file()), folder / names[-1])
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # Of a pickle that torch did not write it warns before it refuses.
            warnings.simplefilter("ignore")
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        if "weights_only" in str(e).lower() or "unsupported" in str(e).lower():
            raise UnreadableError(_pickled(path)) from None
        raise UnreadableError(delta_format.corrupted(path, e)) from None
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as e:
        raise UnreadableError(delta_format.corrupted(path, e)) from None
    if not isinstance(values, dict) or not all(isinstance(v, torch.Tensor) for v in values.values()):
        raise UnreadableError(_pickled(path))
    return {str(k): v for k, v in values.items()}


def _pickled(path: Path) -> Finding:
    return error(
        "adapter-pickled", f"{path}", "it holds more than tensors, and reading that would run code from it",
        "save it again with `use_safetensors=True`",
    )  # fmt: skip


def copy_into(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Copies values into the parameters of these names."""
    import torch

    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def about(top: Any) -> dict[str, Any]:
    """What every configuration says of the model."""
    return {
        "model_type": top.config.model_type,
        "hidden_size": getattr(top.config, "hidden_size", None),
        "model_name": getattr(top, "name_or_path", "") or None,
        "model_class": class_name(top),
        "version": VERSION,
    }
