"""The same cell with plain PEFT: the configuration a user would write, and the same promises."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import zoo
from matrix.cell import (
    Result,
    base_of,
    generates,
    lines_up,
    near,
    promised_in_training,
    quiet,
    rows_of,
    says_the_head_learns,
    tried,
)
from matrix.cells import Cell
from tunekit.task import Task

TOKENS = 5
"""Virtual tokens of the prompts."""


def _prefix(peft: Any, **more: Any) -> Any:
    return peft.PrefixTuningConfig(num_virtual_tokens=TOKENS, **more)


CONFIGS: Mapping[str, Callable[[Any, Any], Any]] = {
    "lora": lambda peft, kind: peft.LoraConfig(r=8, target_modules="all-linear", task_type=kind),
    "ia3": lambda peft, kind: peft.IA3Config(task_type=kind),
    "layernorm-tuning": lambda peft, kind: peft.LNTuningConfig(task_type=kind),
    "prompt-tuning": lambda peft, kind: peft.PromptTuningConfig(num_virtual_tokens=TOKENS, task_type=kind),
    "p-tuning": lambda peft, kind: peft.PromptEncoderConfig(
        num_virtual_tokens=TOKENS, encoder_hidden_size=32, task_type=kind
    ),
    "p-tuning-2": lambda peft, kind: peft.PromptEncoderConfig(
        num_virtual_tokens=TOKENS, encoder_hidden_size=32, encoder_reparameterization_type="LSTM", task_type=kind
    ),
    "peft": lambda peft, kind: peft.VeraConfig(r=8, task_type=kind),
    "prefix-tuning": lambda peft, kind: _prefix(peft, prefix_projection=True, encoder_hidden_size=32, task_type=kind),
    "p-tuning-v2": lambda peft, kind: _prefix(peft, task_type=kind),
}
"""What PEFT calls the method, with its defaults; the other methods it does not have."""


def run_cell(cell: Cell) -> tuple[Result, Result] | None:
    """The cell with checkpointing off, and on; None where PEFT does not have the method."""
    if cell.method not in CONFIGS:
        return None
    task = Task.named(cell.task)
    with quiet():
        return tried(lambda: _theirs(cell, task, False)), tried(lambda: _theirs(cell, task, True))


def _theirs(cell: Cell, task: Task, checkpoints: bool) -> dict[str, float]:
    import peft

    method = cell.settings
    kind = task.peft_task_type
    base = base_of(cell)
    model = peft.get_peft_model(base, CONFIGS[cell.method](peft, kind))
    declared = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    says_the_head_learns(cell, declared, task, only_new=True)
    figures = promised_in_training(model, declared, task, method.family, checkpoints)
    if checkpoints:
        return figures
    inputs = rows_of(task)
    expected = zoo.logits(model, inputs)
    if task.has_head:
        # What a language model says at the virtual tokens too, PEFT leaves out of the loss by itself.
        lines_up(expected, zoo.logits(base_of(cell), inputs))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = peft.PeftModel.from_pretrained(base_of(cell), folder)
        near("saved and reloaded it answers the same", zoo.logits(again, inputs), expected)
    if not task.has_head:
        generates(model, base_of(cell), task)
    if method.merges:
        near("merged it answers as it did live", zoo.logits(model.merge_and_unload(), inputs), expected)
    return figures
