"""Does a prefix teach GPT-2 to put a table into words? Prefix-tuning (Li and Liang, 2021) on restaurant tables.

    python examples/prefix_tuning_table_to_text.py                  a small GPT-2 that is made and taught here
    python examples/prefix_tuning_table_to_text.py --model gpt2     the real one

The small model was taught tables with two kinds of sentences and uses now one, now the other; the prefix makes it use the kind
that is wanted, and none of the weights that were there move.
"""

from __future__ import annotations

from typing import Any

import tunekit
from small import arguments, fit, restaurants, scratch, share_trained, small_model, taught, written


def as_language(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"prompt": f"{row['source']} :", "completion": f" {row['target']}"} for row in rows]


def share_right(trainer: Any, rows: list[dict[str, str]]) -> str:
    """In how many rows the model writes the very sentence that is wanted."""
    right = sum(written(trainer, row["prompt"]).split() == row["completion"].split() for row in rows)
    return f"{right} of {len(rows)}"


def main() -> None:
    asked = arguments(__doc__, steps=225)
    known = as_language([r for wording in (0, 1) for r in restaurants(600, seed=wording, wording=wording)])
    wanted, held_out = as_language(restaurants(200, seed=2, wording=1)), as_language(restaurants(20, seed=3, wording=1))
    texts = [r["prompt"] + r["completion"] for r in (*known, *wanted, *held_out)]
    model = asked.model or taught(small_model("gpt2", texts), "causal-lm", known, 4 * asked.steps)
    plan = tunekit.Plan(
        model=model, task="causal-lm", method=tunekit.methods.PrefixTuning(num_virtual_tokens=20), max_steps=asked.steps,
        learning_rate=5e-3, per_device_train_batch_size=16, output_dir=scratch("prefix"),
    )  # fmt: skip
    before = fit(plan.replace(method=tunekit.methods.Full(), max_steps=1, learning_rate=1e-12), wanted[:1], held_out)
    print(f"before: loss {before.evaluate()['eval_loss']:.3f}, {share_right(before, held_out)} tables as wanted")
    trainer = fit(plan, wanted, held_out)
    print("trains", share_trained(trainer))
    print(f"after: loss {trainer.evaluate()['eval_loss']:.3f}, {share_right(trainer, held_out)} tables as wanted")
    for row in held_out[:2]:
        print(row["prompt"], "->", written(trainer, row["prompt"]))


if __name__ == "__main__":
    main()
