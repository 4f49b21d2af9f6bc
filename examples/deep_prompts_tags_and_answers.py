"""Do deep prompts reach hard sequence tasks? P-tuning v2 (Liu et al., 2022) on token classification and question answering.

python examples/deep_prompts_tags_and_answers.py
python examples/deep_prompts_tags_and_answers.py --model bert-base-uncased
"""

from __future__ import annotations

import tunekit
from small import arguments, encoder, fit, questions, scratch, sentences, share_trained


def main() -> None:
    asked = arguments(__doc__, steps=100)
    tagged, new_tagged = sentences(200), sentences(40, seed=1)
    asking, new_asking = questions(200), questions(40, seed=1)
    texts = [" ".join(r["tokens"]) for r in (*tagged, *new_tagged)]
    texts += [f"{r['context']} {r['question']}" for r in (*asking, *new_asking)]
    model = asked.model or encoder(texts)
    for task, rows, held_out in (
        ("token-classification", tagged, new_tagged),
        ("question-answering", asking, new_asking),
    ):
        plan = tunekit.Plan(
            model=model, task=task, method=tunekit.methods.PTuningV2(num_virtual_tokens=16), max_steps=asked.steps, learning_rate=2e-2,
            per_device_train_batch_size=16, output_dir=scratch(task),
        )  # fmt: skip
        trainer = fit(plan, rows, held_out)
        print(f"{task:22} F1 {trainer.evaluate()['eval_f1']:.2f}, trains {share_trained(trainer)}")


if __name__ == "__main__":
    main()
