"""Can three adapters help a fourth task? Houlsby's and Pfeiffer's adapters, then AdapterFusion over them (two stages).

python examples/adapters_and_fusion.py
python examples/adapters_and_fusion.py --model bert-base-uncased
"""

from __future__ import annotations

import tunekit
from small import arguments, encoder, fit, opinions, scratch, share_trained
from tunekit.fusion import mean_weights

TASK = "sequence-classification"


def sources() -> dict[str, list[dict[str, str]]]:
    """Three related tasks over the same sentences."""
    base = opinions(160, seed=3)
    return {
        "opinion": base,
        "punctuation": [{**r, "label": "exclaims" if "!" in r["text"] else "says"} for r in base],
        "thing": [{**r, "label": "comedy" if "comedy" in r["text"] or "drama" in r["text"] else "other"} for r in base],
    }


def plan_of(model: str, method: tunekit.Method, steps: int, name: str) -> tunekit.Plan:
    return tunekit.Plan(
        model=model, task=TASK, method=method, max_steps=steps, learning_rate=1e-3, per_device_train_batch_size=16,
        output_dir=scratch(name),
    )  # fmt: skip


def main() -> None:
    asked = arguments(__doc__, steps=40)
    target, held_out = opinions(60, seed=5), opinions(60, seed=6)
    texts = [r["text"] for rows in (*sources().values(), target, held_out) for r in rows]
    model = asked.model or encoder(texts)
    folders = []
    for name, rows in sources().items():
        trainer = fit(plan_of(model, tunekit.methods.BottleneckAdapter(variant="pfeiffer"), asked.steps, name), rows)
        folders.append(trainer.args.output_dir)
        trainer.save_model()
        print(f"adapter of {name}: trains {share_trained(trainer)}")
    ways = {
        "Houlsby, new": tunekit.methods.BottleneckAdapter(variant="houlsby"),
        "Pfeiffer, new": tunekit.methods.BottleneckAdapter(variant="pfeiffer"),
        "fusion of three": tunekit.methods.AdapterFusion(adapters=tuple(folders)),
    }
    for name, method in ways.items():
        trainer = fit(plan_of(model, method, asked.steps, method.slug), target, held_out)
        print(f"{name:16} accuracy {trainer.evaluate()['eval_accuracy']:.2f}, trains {share_trained(trainer)}")
    batch = next(iter(trainer.get_eval_dataloader()))
    shares = mean_weights(trainer.model, {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")})
    for layer, weights in shares.items():
        print(layer, " ".join(f"{n} {w:.2f}" for n, w in zip(sources(), weights, strict=True)))


if __name__ == "__main__":
    main()
