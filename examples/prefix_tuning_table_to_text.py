"""Does a prefix teach GPT-2 to put a table into words? Prefix-tuning (Li and Liang, 2021) on restaurant tables.

    python examples/prefix_tuning_table_to_text.py                  a small GPT-2 that is made and taught here
    python examples/prefix_tuning_table_to_text.py --model gpt2     the real one

The model knows one way to describe a restaurant; the prefix, a few per cent of its weights, makes it use another.
"""

from __future__ import annotations

import tunekit
from small import arguments, fit, restaurants, scratch, share_trained, small_model, taught, written


def as_language(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"prompt": f"{row['source']} :", "completion": f" {row['target']}"} for row in rows]


def main() -> None:
    asked = arguments(__doc__, steps=300)
    known, wanted = as_language(restaurants(400, wording=0)), as_language(restaurants(200, seed=1, wording=1))
    held_out = as_language(restaurants(20, seed=2, wording=1))
    texts = [r["prompt"] + r["completion"] for r in (*known, *wanted, *held_out)]
    model = asked.model or taught(small_model("gpt2", texts), "causal-lm", known, 2 * asked.steps)
    plan = tunekit.Plan(
        model=model, task="causal-lm", method=tunekit.methods.PrefixTuning(num_virtual_tokens=20), max_steps=asked.steps,
        learning_rate=2e-2, per_device_train_batch_size=16, output_dir=scratch("prefix"),
    )  # fmt: skip
    trainer = fit(plan, wanted, held_out)
    print("trains", share_trained(trainer))
    print("loss on tables it has not seen:", round(trainer.evaluate()["eval_loss"], 3))
    for row in held_out[:2]:
        print(row["prompt"], "->", written(trainer, row["prompt"]))


if __name__ == "__main__":
    main()
