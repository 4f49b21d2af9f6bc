"""A module of an objective's own, such as a projection: it learns in the model and is kept with checkpoints, never shipped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.contracts import OWN_MODULE
from tunekit.structure import task_model, unwrapped

if TYPE_CHECKING:
    from torch import nn

FILE = "tunekit_objective.safetensors"
"""Beside the weights in a checkpoint."""


def own_module(model: nn.Module) -> nn.Module | None:
    """The module that an objective has put into the model; None where it has not."""
    return task_model(model)._modules.get(OWN_MODULE)


def own_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Its parameters that learn."""
    found = own_module(unwrapped(model))
    return [] if found is None else [p for p in found.parameters() if p.requires_grad]


def put_own_module(model: nn.Module, module: nn.Module) -> None:
    """Puts it into the transformers model, so that every wrapper (DDP, ZeRO) treats it as a part, and saving leaves it out."""
    inner: Any = task_model(model)
    inner.add_module(OWN_MODULE, module)
    names = [f"{OWN_MODULE}.{name}" for name in module.state_dict()]
    # `save_pretrained` leaves these out, and the Trainer does not miss them when it loads what was saved.
    vars(inner)["_keys_to_ignore_on_save"] = sorted({*(inner._keys_to_ignore_on_save or ()), *names})


def save_beside(trainer: Any, folder: Path) -> None:
    """Writes it into a checkpoint. DeepSpeed's own part of a checkpoint holds it already, in shards."""
    found = own_module(trainer.model)
    if found is None or trainer.is_deepspeed_enabled or not trainer.args.should_save:
        return
    from safetensors.torch import save_file

    save_file({k: v.detach().cpu().contiguous() for k, v in found.state_dict().items()}, folder / FILE)


def load_beside(trainer: Any, folder: Path) -> None:
    """Reads it from a checkpoint that has it."""
    found = own_module(trainer.model)
    if found is None or not (folder / FILE).is_file():
        return
    from safetensors.torch import load_file

    found.load_state_dict(load_file(folder / FILE))
