"""Plain Trainers over tiny models, as somebody else's script would make them: clean ones, to plant mistakes in."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import zoo
from tunekit.task import Task

PAD, BOS, EOS = 0, 1, 2


class Pad:
    """Pads ids with 0 and labels by position with -100, at one side."""

    def __init__(self, side: str = "right", masked: int | None = None) -> None:
        self.side, self.masked = side, masked

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [{k: r[k] for k in ("input_ids", "labels", "start_positions", "end_positions") if k in r} for r in rows]
        longest = max(len(r["input_ids"]) for r in rows)
        made = {"input_ids": [], "attention_mask": []}
        for r in rows:
            gap = longest - len(r["input_ids"])
            made["input_ids"].append(self._put(r["input_ids"], [PAD] * gap))
            made["attention_mask"].append(self._put([1] * len(r["input_ids"]), [0] * gap))
        for name in [n for n in ("labels", "start_positions", "end_positions") if n in rows[0]]:
            values = [r[name] for r in rows]
            if isinstance(values[0], list):
                most = max(map(len, values))
                values = [self._put(v, [-100] * (most - len(v))) for v in values]
                values = [[-100 if x == self.masked else x for x in v] for v in values]
            made[name] = values
        return {k: torch.tensor(v) for k, v in made.items()}

    def _put(self, values: list[int], gap: list[int]) -> list[int]:
        return gap + values if self.side == "left" else values + gap


def rows(task: str, count: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Random rows of unequal length, those that are written with their end."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        ids = [draw.randrange(3, 100) for _ in range(draw.randrange(6, 20))]
        row: dict[str, Any] = {"input_ids": [*ids, EOS]}
        if task == "sequence-classification":
            row["labels"] = i % 2
        elif task == "regression":
            row["labels"] = draw.random()
        elif task == "token-classification":
            row["labels"] = [draw.randrange(2) for _ in row["input_ids"]]
        elif task == "question-answering":
            row |= {"start_positions": 1, "end_positions": 2}
        elif task == "seq2seq":
            row["labels"] = [*(draw.randrange(3, 100) for _ in range(draw.randrange(2, 8))), EOS]
        else:
            row["labels"] = [-100] * 3 + row["input_ids"][3:]
        made.append(row)
    return made


def trainer(
    folder: Path,
    architecture: str = "bert",
    task: str = "sequence-classification",
    model: nn.Module | None = None,
    given: dict[str, Any] | None = None,
    cls: type[Trainer] = Trainer,
    **arguments: Any,
) -> Trainer:
    """A Trainer over a tiny model and random rows; `given` are further arguments of the Trainer."""
    model = zoo.build(architecture, Task.named(task)) if model is None else model
    args = TrainingArguments(
        str(folder), **{"report_to": "none", "use_cpu": True, "max_steps": 2, "learning_rate": 1e-3, **arguments}
    )
    given = {"train_dataset": rows(task), "eval_dataset": rows(task, 10, 1), "data_collator": Pad(), **(given or {})}
    return cls(model, args, **given)


def lora(architecture: str, task: str, **settings: Any) -> nn.Module:
    """PEFT's LoRA as its own examples make it."""
    from peft import LoraConfig, get_peft_model

    kind = {"sequence-classification": "SEQ_CLS", "token-classification": "TOKEN_CLS", "causal-lm": "CAUSAL_LM"}[task]
    settings = {"task_type": kind, "target_modules": _TARGETS[architecture], **settings}
    return get_peft_model(zoo.build(architecture, Task.named(task)), LoraConfig(r=2, **settings))


def checkpointing(reentrant: bool = False) -> dict[str, Any]:
    """The arguments that switch activation checkpointing on, under the installed version's names."""
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": reentrant}}


_TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}
