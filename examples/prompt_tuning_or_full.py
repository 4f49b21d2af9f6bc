"""What does prompt tuning give up against full fine-tuning, and what does it save? Lester et al., 2021, on a T5.

python examples/prompt_tuning_or_full.py
python examples/prompt_tuning_or_full.py --model google/t5-v1_1-small
"""

from __future__ import annotations

import tunekit
from small import arguments, fit, opinions, scratch, share_trained, small_model


def main() -> None:
    asked = arguments(__doc__, steps=200)
    rows, held_out = opinions(240), opinions(60, seed=1)
    model = asked.model or small_model("t5", [r["text"] for r in (*rows, *held_out)])
    pairs = {
        "full fine-tuning": (tunekit.methods.Full(), 1e-3),
        "prompt tuning": (tunekit.methods.PromptTuning(num_virtual_tokens=20), 3e-2),
    }
    for name, (method, rate) in pairs.items():
        plan = tunekit.Plan(
            model=model, task="sequence-classification", method=method, max_steps=asked.steps, learning_rate=rate,
            per_device_train_batch_size=16, output_dir=scratch(method.slug),
        )  # fmt: skip
        trainer = fit(plan, rows, held_out)
        print(f"{name:18} accuracy {trainer.evaluate()['eval_accuracy']:.2f}, trains {share_trained(trainer)}")


if __name__ == "__main__":
    main()
