"""Does a prefix teach BART to shorten? Prefix-tuning of a seq2seq model, on its encoder's and its decoder's side.

python examples/prefix_tuning_summaries.py
python examples/prefix_tuning_summaries.py --model facebook/bart-base
"""

from __future__ import annotations

import tunekit
from small import arguments, fit, restaurants, scratch, share_trained, small_model, taught, written


def short(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The long description, and the two words that matter."""
    made = []
    for row in rows:
        facts = dict(part.rstrip("]").split("[") for part in row["source"].split(", "))
        made.append({"source": row["target"], "target": f"{facts['food']} , {facts['price']}"})
    return made


def main() -> None:
    asked = arguments(__doc__, steps=300)
    known = [{"source": r["target"], "target": r["target"]} for r in restaurants(400, wording=1)]
    wanted, held_out = short(restaurants(200, seed=1)), short(restaurants(20, seed=2))
    texts = [r["source"] + " " + r["target"] for r in (*known, *wanted, *held_out)]
    model = asked.model or taught(small_model("bart", texts), "seq2seq", known, min(400, 2 * asked.steps))
    plan = tunekit.Plan(
        model=model, task="seq2seq", method=tunekit.methods.PrefixTuning(num_virtual_tokens=10), max_steps=asked.steps,
        learning_rate=5e-3, per_device_train_batch_size=16, output_dir=scratch("prefix"),
    )  # fmt: skip
    trainer = fit(plan, wanted, held_out)
    print("trains", share_trained(trainer))
    print("loss on texts it has not seen:", round(trainer.evaluate()["eval_loss"], 3))
    print(held_out[0]["source"], "->", written(trainer, held_out[0]["source"], most=8))


if __name__ == "__main__":
    main()
