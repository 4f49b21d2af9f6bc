"""What does a language model know before it has seen a label? Zero- and few-shot prompt learning (Schick and Schuetze, 2021).

    python examples/prompt_learning.py                           a small decoder that is made and taught to read here
    python examples/prompt_learning.py --model gpt2              a real one

The model has read sentences about films, some of them with a verdict ("It was good"). Asked by a blank it says which verdict a
new sentence would get; eight rows a class teach it the words of which it has read no verdict. (On sentences as simple as these a new
head learns them as well; what it cannot do is answer before it has seen a label.)
"""

from __future__ import annotations

from transformers import AutoModelForCausalLM, AutoTokenizer

import tunekit
from small import BAD, GOOD, arguments, fit, opinions, scratch, small_model, taught

OBJECTIVE = tunekit.objectives.PromptLearning(
    templates=("{text} It was {mask}",), verbalizer={"negative": ("bad",), "positive": ("good",)}
)
JUDGED = (*GOOD[:3], *BAD[:3])
"""The words of which the small model has read a verdict."""


def read_before() -> list[dict[str, str]]:
    """What stands for pretraining: sentences about films, the verdict after some of them."""
    verdicts = {"positive": "It was good", "negative": "It was bad"}
    return [
        {"text": f"{r['text']} {verdicts[r['label']]}" if any(w in r["text"] for w in JUDGED) else r["text"]}
        for r in opinions(800, seed=7)
    ]


def main() -> None:
    asked = arguments(__doc__, steps=60)
    few, held_out = opinions(16), opinions(80, seed=1)
    read = read_before()
    model = asked.model or taught(small_model("gpt2", [r["text"] for r in read]), "causal-lm", read, 10 * asked.steps)

    tokenizer, live = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    scores = tunekit.prompt_scores(live, tokenizer, OBJECTIVE, held_out)
    names = list(OBJECTIVE.verbalizer)
    right = sum(names[i] == row["label"] for i, row in zip(scores.argmax(-1).tolist(), held_out, strict=True))
    print(f"asked, no label seen:               accuracy {right / len(held_out):.2f}")

    plan = tunekit.Plan(
        model=model, task="sequence-classification", method=tunekit.methods.Lora(r=8), max_steps=asked.steps, learning_rate=2e-3,
        per_device_train_batch_size=8, output_dir=scratch("prompted"),
    )  # fmt: skip
    for name, objective in (("a blank to fill in", OBJECTIVE), ("a new head", None)):
        trainer = fit(plan.replace(objective=objective, output_dir=scratch("few")), few, held_out)
        print(f"{len(few)} rows, {name:20}        accuracy {trainer.evaluate()['eval_accuracy']:.2f}")


if __name__ == "__main__":
    main()
