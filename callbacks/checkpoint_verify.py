"""CheckpointVerify: what was saved is opened again and held against what is in memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunekit.checkpoint import MANIFEST, faults, seal
from tunekit.errors import RunError
from tunekit.finding import Finding, error

_LOG = logging.getLogger(__name__)
_SHOWN = 3


class CheckpointVerify(TrainerCallback):
    """Reopens every checkpoint: whole, every tensor finite, and equal to the model's to the bit.

    Then it is flushed to the disk, with a manifest that `tunekit.last_checkpoint` holds it against later. Weights in
    shards of a DeepSpeed or FSDP format are only looked at for wholeness.

    Args:
        stop: Whether a checkpoint that is not what it should be stops the run; else it is only logged.

    Raises:
        RunError: `checkpoint-torn`, `checkpoint-differs`, `checkpoint-not-finite`.

    Example:
        >>> CheckpointVerify().verified             # Trainer(..., callbacks=[CheckpointVerify()])
        []
    """

    slug = "checkpoint-verify"

    def __init__(self, stop: bool = True) -> None:
        self.stop = stop
        self.verified: list[str] = []
        """Names of the checkpoints that are as they should be."""
        self.findings: tuple[Finding, ...] = ()
        """What was wrong with the others."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Opens what was just saved."""
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero or not folder.is_dir():
            return
        wrong = look(folder, kwargs.get("model"))
        if not wrong:
            if not (folder / MANIFEST).exists():
                seal(folder, num_processes=args.world_size, global_step=state.global_step)
            self.verified.append(folder.name)
            return
        self.findings += wrong
        for finding in wrong:
            _LOG.error("%s", finding)
        if self.stop:
            raise RunError(*wrong)


def look(folder: Path, model: Any) -> tuple[Finding, ...]:
    """What is wrong with a checkpoint, held against the model it was saved from."""
    torn = faults(folder)
    if torn:
        why, fix = (
            "a resumption from it would fail or go wrong",
            "make room on the disk, and use `tunekit.last_checkpoint`",
        )
        return (error("checkpoint-torn", f"{folder.name}: {', '.join(torn[:_SHOWN])}", why, fix),)
    live = _live(model)
    differs, broken = [], []
    for name, tensor in _saved(folder):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            broken.append(name)
        mine = live.get(name)
        if mine is not None and not _same(tensor, mine):
            differs.append(name)
    return tuple(_findings(folder.name, differs, broken))


def _findings(folder: str, differs: list[str], broken: list[str]) -> list[Finding]:
    found = []
    if broken:
        found.append(error("checkpoint-not-finite", f"{folder}: `{broken[0]}` and {len(broken) - 1} more hold nan or inf",
                           "the run is lost from here on", "resume from an earlier checkpoint with a lower learning rate"))  # fmt: skip
    elif differs:
        found.append(error("checkpoint-differs", f"{folder}: `{differs[0]}` and {len(differs) - 1} more are not what the model holds",
                           "what is loaded later is not what was trained", "look for a callback or a hook that changes weights"))  # fmt: skip
    return found


def _live(model: Any) -> dict[str, torch.Tensor]:
    """The model's tensors under the names they are saved by."""
    if not isinstance(model, nn.Module):
        return {}
    if hasattr(model, "peft_config") and hasattr(model, "base_model"):
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(model)
    return model.state_dict()


def _saved(folder: Path) -> Any:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def _same(saved: torch.Tensor, live: torch.Tensor) -> bool:
    """Equal to the bit, nan with nan; shapes and dtypes of a sharded format are not compared."""
    live = live.detach().to("cpu")
    if saved.shape != live.shape or saved.dtype != live.dtype:
        return True
    return bool(
        torch.equal(saved, live)
        or (torch.equal(saved.isnan(), live.isnan()) and torch.equal(saved.nan_to_num(), live.nan_to_num()))
    )
