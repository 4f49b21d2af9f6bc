"""What a run's record says of versions, machine, rows and model; nothing that names a person or a host."""

from __future__ import annotations

import math
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "deepspeed", "trl")
_ARGUMENTS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "weight_decay", "max_grad_norm",
    "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "optim", "bf16", "fp16", "seed",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of tunekit and of what it stands on, where installed."""
    from tunekit import __version__

    found = {"python": platform.python_version(), "tunekit": __version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(device_type: str, num_processes: int) -> dict[str, Any]:
    """The kind of machine, without its name."""
    import psutil
    import torch

    cuda = device_type == "cuda"
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if cuda else device_type,
        "device_memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "num_processes": num_processes,
        "num_threads": torch.get_num_threads(),
        "host_cores": _usable_cores(),
        "host_memory_bytes": psutil.virtual_memory().total,
    }


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def arguments(args: Any) -> dict[str, Any]:
    """The settings of a Trainer that decide what is learnt, for a run without a plan."""
    known = args.to_dict()
    return {name: known[name] for name in _ARGUMENTS if name in known}


def length(dataloader: Any) -> int | None:
    """The number of rows behind a loader, None where it does not know it."""
    try:
        return len(dataloader.dataset)
    except (AttributeError, TypeError):
        return None


def parameters(model: Any) -> dict[str, int]:
    """Trainable and total parameters."""
    total = trainable = 0
    for p in model.parameters():
        size = values_of(p)
        total += size
        trainable += size if p.requires_grad else 0
    return {"trainable": trainable, "total": total}


def values_of(p: Any) -> int:
    """How many values a parameter stands for: under ZeRO-3 it holds a shard, and bitsandbytes packs two of 4 bits into a byte."""
    packed = getattr(p, "quant_state", None)
    return math.prod(packed.shape) if packed is not None else getattr(p, "ds_numel", None) or p.numel()


def without_home(value: Any) -> Any:
    """Plain values with the home folder in paths written as `~`.

    Example:
        >>> without_home({"output_dir": str(Path.home() / "runs")})
        {'output_dir': '~/runs'}
    """
    home = str(Path.home())
    if isinstance(value, dict):
        return {k: without_home(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_home(v) for v in value]
    if isinstance(value, str) and len(home) > 1 and (value == home or value.startswith(home + os.sep)):
        return "~" + value[len(home) :]
    return value
