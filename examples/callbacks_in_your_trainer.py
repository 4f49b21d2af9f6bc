"""What can tunekit add to a Trainer that is not its own? Drop-in callbacks in a plain Trainer and in TRL's SFTTrainer.

python examples/callbacks_in_your_trainer.py
"""

from __future__ import annotations

import tunekit
from small import arguments, instructions, opinions, scratch, small_model
from tunekit.callbacks import GeneralizationGuard, LossGuard, RunRecord, Throughput


def in_a_trainer(steps: int, model: str) -> None:
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(model)
    names = ("negative", "positive")

    def encoded(rows: list[dict[str, str]]) -> Dataset:
        return Dataset.from_list([{**tokenizer(r["text"]), "labels": names.index(r["label"])} for r in rows])

    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(model, num_labels=2),
        TrainingArguments(scratch("plain"), max_steps=steps, eval_strategy="steps", eval_steps=max(1, steps // 2), report_to="none", disable_tqdm=True),
        train_dataset=encoded(opinions(200)), eval_dataset=encoded(opinions(40, seed=1)), data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[RunRecord(), LossGuard(), Throughput(), GeneralizationGuard()],
    )  # fmt: skip
    for finding in tunekit.check(trainer):
        print("before it starts:", finding)
    trainer.train()
    record = next(c for c in trainer.callback_handler.callbacks if isinstance(c, RunRecord)).to_dict()
    print("plain Trainer:", record["status"], f"peak {record['measured']['memory']['device_bytes'] / 2**30:.2f} GiB")


def in_trl(steps: int) -> None:
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    rows = [{"prompt": r["prompt"], "completion": r["completion"]} for r in instructions(100)]
    model = small_model("llama", [r["prompt"] + r["completion"] for r in rows])
    trainer = SFTTrainer(
        model, SFTConfig(scratch("trl"), max_steps=steps, report_to="none", disable_tqdm=True, bf16=False, use_cpu=True, max_length=64),
        train_dataset=Dataset.from_list(rows), callbacks=[RunRecord(), LossGuard(), Throughput()],
    )  # fmt: skip
    trainer.train()
    record = next(c for c in trainer.callback_handler.callbacks if isinstance(c, RunRecord)).to_dict()
    print("SFTTrainer:", record["status"], f"after {record['steps']['done']} steps")


def main() -> None:
    asked = arguments(__doc__, steps=20)
    in_a_trainer(asked.steps, asked.model or small_model("bert", [r["text"] for r in opinions(240)]))
    in_trl(asked.steps)


if __name__ == "__main__":
    main()
