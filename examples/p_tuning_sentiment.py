"""Can a few virtual tokens before the sentence carry an opinion? P-tuning (MLP and LSTM) and P-tuning v2 on films.

[Prompt1][Prompt2] ... "This movie is inspiring."   ->   positive

    python examples/p_tuning_sentiment.py
    python examples/p_tuning_sentiment.py --model bert-base-uncased
"""

from __future__ import annotations

import tunekit
from small import arguments, encoder, fit, opinions, scratch, share_trained


def main() -> None:
    asked = arguments(__doc__, steps=60)
    rows, held_out = opinions(240), opinions(60, seed=1)
    model = asked.model or encoder([r["text"] for r in (*rows, *held_out)])
    methods = {
        "P-tuning, MLP": (tunekit.methods.PTuning(num_virtual_tokens=8, encoder="mlp"), 1e-3),
        "P-tuning, LSTM": (tunekit.methods.PTuning(num_virtual_tokens=8, encoder="lstm"), 1e-3),
        "P-tuning v2": (tunekit.methods.PTuningV2(num_virtual_tokens=8), 2e-2),
    }
    for name, (method, rate) in methods.items():
        plan = tunekit.Plan(
            model=model, task="sequence-classification", method=method, max_steps=asked.steps, learning_rate=rate,
            per_device_train_batch_size=16, output_dir=scratch(method.slug),
        )  # fmt: skip
        trainer = fit(plan, rows, held_out)
        print(f"{name:16} accuracy {trainer.evaluate()['eval_accuracy']:.2f}, trains {share_trained(trainer)}")


if __name__ == "__main__":
    main()
