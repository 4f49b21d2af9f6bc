"""A bottleneck adapter by AdapterHub's AdapterTrainer with its defaults, in an environment of its own.

    ENVIRONMENT/bin/python benchmarks/throughput_adapters.py ASKED.json

Started by throughput.py: rows and settings come in a file, what was measured goes out as the last line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


class Counted:
    """A collator that counts what it makes."""

    def __init__(self, collate: Callable[[Any], Any], pad: int) -> None:
        self.collate, self.pad, self.tokens, self.real = collate, pad, 0, 0

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        self.tokens += ids.numel()
        self.real += int(mask.sum() if mask is not None else (ids != self.pad).sum())
        return batch


def clock(trainer: Any) -> list[tuple[float, float]]:
    """Processor's and wall time at the first step's beginning and at the end of each step, once the Trainer has trained."""
    from transformers import TrainerCallback

    seen: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if not seen:
                seen.append((time.process_time(), time.perf_counter()))

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append((time.process_time(), time.perf_counter()))

    trainer.add_callback(Clock())
    return seen


def main(path: str) -> None:
    from pathlib import Path

    import adapters
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        TrainingArguments,
    )

    asked = json.loads(Path(path).read_text())
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    rows = [{**tokenizer(r["text"], truncation=True, max_length=128), "labels": r["label"]} for r in asked["train"]]  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(asked["model"], num_labels=asked["classes"])
    adapters.init(model)
    model.add_adapter("a", config="seq_bn")
    model.train_adapter("a")
    args = TrainingArguments(
        asked["out"], per_device_train_batch_size=asked["batch"], learning_rate=asked["rate"], num_train_epochs=1, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    counted = Counted(DataCollatorWithPadding(tokenizer), tokenizer.pad_token_id)
    trainer = adapters.AdapterTrainer(model=model, args=args, train_dataset=rows, data_collator=counted)
    seen = clock(trainer)
    trainer.train()
    spent, wall = (end - begin for begin, end in zip(seen[0], seen[-1], strict=True))
    found = {"cpu_seconds": spent, "wall_seconds": wall, "steps": trainer.state.global_step, "tokens": counted.tokens, "real_tokens": counted.real}  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
