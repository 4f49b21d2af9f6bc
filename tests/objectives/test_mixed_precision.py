"""Under mixed precision an objective that calls the output layer itself learns as in full precision, to what bfloat16 can tell."""

from __future__ import annotations

from typing import Any

import pytest

import tunekit

ROWS = [{"text": f"the sun was {('good', 'bad')[i % 2]} {i}", "label": ("good", "bad")[i % 2]} for i in range(16)]
WRITTEN = [{"prompt": f"what is {i} ?", "completion": f" the number {i} ."} for i in range(16)]


def loss(plan: tunekit.Plan, rows: list[dict[str, Any]]) -> float:
    quiet = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "disable_tqdm": True}
    trainer = tunekit.trainer(plan, train_dataset=rows, overwrite=True, **quiet)
    return trainer.train().training_loss


@pytest.mark.parametrize("kind", ["prompt-learning", "distillation"])
def test_the_loss_under_bf16_is_that_in_float32_to_its_precision(
    kind: str, tiny_masked: str, tiny_decoder: str, tmp_path: Any
) -> None:
    asks = {
        "prompt-learning": (
            tiny_masked, "sequence-classification", ROWS,
            tunekit.objectives.PromptLearning(templates=("{text} {mask}",), verbalizer={"bad": ("bad",), "good": ("good",)}),
        ),
        "distillation": (tiny_decoder, "causal-lm", WRITTEN, tunekit.objectives.Distillation(teacher=tiny_decoder)),
    }  # fmt: skip
    model, task, rows, objective = asks[kind]
    plan = tunekit.Plan(
        model=model, task=task, method=tunekit.methods.Lora(r=2), objective=objective, max_steps=2, dtype="float32",
        output_dir=str(tmp_path / "run"), per_device_train_batch_size=8,
    )  # fmt: skip
    whole, mixed = (loss(plan.replace(mixed_precision=m), rows) for m in (None, "bf16"))
    assert mixed == pytest.approx(whole, rel=0.03)
