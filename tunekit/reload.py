"""A fresh model with what a folder holds, as somebody would load it tomorrow."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.attach import load, prepared
from tunekit.prefix_attention import KERNEL_PREFIX
from tunekit.structure import task_model, unwrapped

if TYPE_CHECKING:
    from torch import nn


def reloaded(model: nn.Module, folder: str | Path) -> nn.Module | None:
    """What was saved from a model, on a base of its own; the given model is only read.

    The base comes from the folder it was loaded from where that is at hand, and is otherwise rebuilt from the model's
    configuration and from those of its weights that the method does not add. None where neither goes.

    Args:
        model: The model that was saved, with the weights that it had before it was trained.
        folder: What was saved.
    """
    live, folder = unwrapped(model), Path(folder)
    cls: Any = type(task_model(live))
    if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        made = cls.from_pretrained(folder, dtype=task_model(live).dtype)
        return _beside(made, live)
    base = _read(task_model(live)) or _rebuilt(task_model(live))
    if base is None:
        return None
    if prepared(model) is not None:
        return _beside(load(base, folder), live)
    if hasattr(live, "peft_config"):
        from peft import PeftModel

        return _beside(PeftModel.from_pretrained(base, str(folder)), live)
    return None


def _beside(made: nn.Module, live: nn.Module) -> nn.Module:
    return made.to(next(live.parameters()).device)


def _read(live: Any) -> nn.Module | None:
    """The base as its folder holds it."""
    name = str(getattr(live, "name_or_path", "") or "")
    if not name:
        return None
    kind: Any = type(live)
    try:
        return kind.from_pretrained(name, config=_config(live), dtype=live.dtype, local_files_only=True)
    except (OSError, ValueError, RuntimeError):
        return None


def _rebuilt(live: Any) -> nn.Module | None:
    """The base from its configuration, with the weights that it has before training."""
    kind: Any = type(live)
    if getattr(live, "is_quantized", False):
        return None
    # The device first: PEFT's layers may have been moved, and a module on another device cannot be filled by copying.
    made = kind(_config(live)).to(dtype=live.dtype)
    own = {}
    for name, value in live.state_dict().items():
        if any(part in name for part in ("lora_", ".modules_to_save.", ".token_adapter.")):
            continue
        own[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = value.detach().cpu()
    missing, _ = made.load_state_dict({k: v for k, v in own.items() if k in made.state_dict()}, strict=False)
    tied = {*(getattr(made, "_tied_weights_keys", None) or ())}
    return None if {*missing} - tied else made


def _config(live: Any) -> Any:
    """Its configuration, with the attention kernel below the one that a prefix put there."""
    config = copy.deepcopy(live.config)
    kernel = getattr(config, "_attn_implementation", None)
    if str(kernel).startswith(KERNEL_PREFIX):
        config._attn_implementation = str(kernel).removeprefix(KERNEL_PREFIX)
    return config
