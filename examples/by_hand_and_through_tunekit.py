"""What does tunekit do that I would write myself? The same LoRA run by hand, with PEFT and a Trainer, and through a plan.

    python examples/by_hand_and_through_tunekit.py

Both see the same rows in the same order and end with the same loss.
"""

from __future__ import annotations

import tunekit
from small import arguments, fit, opinions, scratch, small_model

NAMES = ("negative", "positive")


def by_hand(model: str, rows: list[dict[str, str]], steps: int) -> float:
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    # By hand one has to know the layers' names, to leave the head out of the targets, and to train and save it all the same.
    config = LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=32, modules_to_save=["classifier", "pooler.dense"],
        target_modules=["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"], exclude_modules=["pooler.dense"],
    )  # fmt: skip
    encoded = Dataset.from_list([{**tokenizer(r["text"]), "labels": NAMES.index(r["label"])} for r in rows])
    trainer = Trainer(
        get_peft_model(base, config),
        TrainingArguments(
            scratch("hand"), max_steps=steps, learning_rate=5e-3, per_device_train_batch_size=16, warmup_steps=0.06, seed=42, data_seed=42,
            report_to="none", disable_tqdm=True, logging_strategy="no", use_cpu=True,
        ),
        train_dataset=encoded, data_collator=DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    return trainer.train().training_loss


def through_tunekit(model: str, rows: list[dict[str, str]], steps: int) -> float:
    plan = tunekit.Plan(
        model=model, task="sequence-classification", method=tunekit.methods.Lora(r=8), learning_rate=5e-3, max_steps=steps,
        per_device_train_batch_size=16, output_dir=scratch("plan"),
    )  # fmt: skip
    trainer = fit(plan, rows, train_sampling_strategy="random")  # its own choice, batches of like lengths, is quicker
    return trainer.state.log_history[-1]["train_loss"]


def main() -> None:
    asked = arguments(__doc__, steps=60)
    rows = opinions(160)
    model = asked.model or small_model("bert", [r["text"] for r in rows])
    print(f"by hand         mean loss {by_hand(model, rows, asked.steps):.4f}")
    print(f"through a plan  mean loss {through_tunekit(model, rows, asked.steps):.4f}")


if __name__ == "__main__":
    main()
