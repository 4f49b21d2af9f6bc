"""Does a student learn more from a teacher than from labels? An encoder of fewer layers, and a decoder.

python examples/distillation.py
"""

from __future__ import annotations

from transformers import AutoModelForSequenceClassification

import tunekit
from small import arguments, encoder, fit, instructions, opinions, scratch, share_trained, small_model, taught


def an_encoder(steps: int, model: str | None) -> None:
    rows, held_out = opinions(120), opinions(60, seed=1)
    base = model or encoder([r["text"] for r in (*rows, *held_out)])
    plan = tunekit.Plan(
        model=base, task="sequence-classification", method=tunekit.methods.Full(), max_steps=steps, learning_rate=2e-4,
        per_device_train_batch_size=16, output_dir=scratch("teacher"),
    )  # fmt: skip
    teacher = fit(plan, rows, held_out)
    teacher.save_model()
    student = tunekit.make_student(AutoModelForSequenceClassification.from_pretrained(plan.output_dir), num_layers=3)
    folder = scratch("student")
    student.model.save_pretrained(folder)
    teacher.processing_class.save_pretrained(folder)
    print(f"teacher: accuracy {teacher.evaluate()['eval_accuracy']:.2f}; student: {student}")
    objectives = {"labels": None, "teacher": tunekit.objectives.Distillation(teacher=plan.output_dir, temperature=2.0)}
    for name, objective in objectives.items():
        taught_so = plan.replace(
            model=folder, objective=objective, output_dir=scratch(name), max_steps=max(1, steps // 2)
        )
        trainer = fit(taught_so, rows, held_out)
        print(f"student taught by its {name:8} accuracy {trainer.evaluate()['eval_accuracy']:.2f}")


def a_decoder(steps: int) -> None:
    rows, held_out = instructions(240), instructions(30, seed=1)
    base = small_model("gpt2", [r["prompt"] + r["completion"] for r in (*rows, *held_out)])
    teacher = taught(base, "causal-lm", rows, 3 * steps)
    objective = tunekit.objectives.Distillation(teacher=teacher, divergence="reverse-kl")
    plan = tunekit.Plan(
        model=base, task="causal-lm", method=tunekit.methods.Lora(r=16), objective=objective, max_steps=steps, learning_rate=5e-3,
        per_device_train_batch_size=16, output_dir=scratch("decoder"),
    )  # fmt: skip
    trainer = fit(plan, rows, held_out)
    print(
        f"decoder, a LoRA student: loss on new orders {trainer.evaluate()['eval_loss']:.3f}, trains {share_trained(trainer)}"
    )


def main() -> None:
    asked = arguments(__doc__, steps=60)
    an_encoder(asked.steps, asked.model)
    a_decoder(asked.steps)


if __name__ == "__main__":
    main()
