"""Evaluation and early stopping: by the size of the data, only where rows are held out, and through the trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tunekit
from tunekit.advisor.rule import example
from tunekit.advisor.stopping import Stopping, stopping
from tunekit.callbacks.early_stopping import EarlyStopping

ROWS = [{"text": "good film" if i % 2 else "bad film", "label": "yn"[i % 2]} for i in range(24)]


def of(rows: int, held_out: int, epochs: float, *, base: bool = False, parameters: int = 110_000_000) -> Stopping:
    question = example("lora", num_examples=rows, num_parameters=parameters)
    return stopping(question.workload, held_out, epochs, base)


def test_without_rows_to_evaluate_on_nothing_stops_early() -> None:
    assert of(5000, 0, 3) == Stopping()


def test_a_handful_of_rows_to_evaluate_on_stops_nothing() -> None:
    assert of(5000, 19, 3) == Stopping()
    assert of(5000, 20, 3).early_stopping_patience is not None


def test_many_passes_are_evaluated_once_an_epoch_and_few_ten_times() -> None:
    assert of(200, 20, 40).eval_interval is None
    assert of(50_000, 2500, 3).eval_interval == 0.1


@pytest.mark.parametrize(
    ("rows", "held_out", "epochs"), [(200, 20, 40), (1000, 100, 8), (5000, 500, 3), (50_000, 5000, 3)]
)
def test_it_waits_a_quarter_of_the_run_at_least_and_less_than_all_of_it(
    rows: int, held_out: int, epochs: float
) -> None:
    found = of(rows, held_out, epochs)
    count = epochs if found.eval_interval is None else 1 / found.eval_interval
    assert found.early_stopping_patience is not None
    assert count / 4 <= found.early_stopping_patience < count


def test_fewer_rows_wait_longer() -> None:
    waits = [of(rows, rows // 10, 20).early_stopping_patience for rows in (500, 5000, 50_000)]
    assert waits == sorted(waits, reverse=True)  # type: ignore[type-var]


def test_many_rows_to_evaluate_on_are_asked_seldomer() -> None:
    few, many = of(1000, 100, 16), of(1000, 20_000, 16)
    assert few.eval_interval is None
    assert many.eval_interval == 0.25


def test_one_pass_and_whole_large_models_run_to_their_end() -> None:
    assert of(100_000, 5000, 1).early_stopping_patience is None
    assert of(5000, 500, 3, base=True, parameters=8 * 10**9) == Stopping()


# ------------------------------------------------------------------------------------------------ the callback
def state(*scores: float, metric: str = "eval_loss", max_steps: int = 100) -> Any:
    log = [{"step": i + 1, metric: score} for i, score in enumerate(scores)]
    return SimpleNamespace(log_history=log, global_step=len(scores), max_steps=max_steps, is_world_process_zero=True)


def stops(patience: int, seen: Any, metric: str | None = None, greater: bool | None = None) -> bool:
    control = SimpleNamespace(should_training_stop=False)
    EarlyStopping(patience).on_evaluate(
        SimpleNamespace(metric_for_best_model=metric, greater_is_better=greater), seen, control
    )  # type: ignore[arg-type]
    return control.should_training_stop


def test_it_stops_after_so_many_evaluations_without_a_better_score() -> None:
    assert not stops(2, state(3.0, 2.0, 2.5))
    assert stops(2, state(3.0, 2.0, 2.5, 2.0)), "an equal score is no better one"
    assert not stops(2, state(3.0, 2.0, 2.5, 1.9))


def test_it_says_once_that_it_stopped_and_why(caplog: pytest.LogCaptureFixture) -> None:
    callback, control = EarlyStopping(2), SimpleNamespace(should_training_stop=False)
    args = SimpleNamespace(metric_for_best_model="eval_accuracy", greater_is_better=True)
    seen = state(0.9, 0.8, 0.7, metric="eval_accuracy")
    for event in (callback.on_evaluate, callback.on_train_end, callback.on_evaluate):  # the last one after training
        event(args, seen, control)  # type: ignore[arg-type]
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "stopped early at step 3 of 100: no better accuracy in 2 evaluations"
    ]


def test_it_judges_by_the_trainers_own_metric_and_direction() -> None:
    falling = state(0.9, 0.8, 0.7, metric="eval_accuracy")
    assert stops(2, falling, "accuracy", True)
    assert not stops(2, falling, "eval_accuracy", False)


def test_an_evaluation_outside_training_stops_nothing() -> None:
    assert not stops(1, state(1.0, 2.0, 3.0, max_steps=3))


# ------------------------------------------------------------------------------------------------ through the trainer
def plan_of(folder: Path, model: str, **more: Any) -> tunekit.Plan:
    return tunekit.Plan(
        model=model, task="sequence-classification", method=tunekit.methods.BitFit(), output_dir=str(folder / "run"),
        per_device_train_batch_size=4, learning_rate=1e-9, num_train_epochs=20, **more,
    )  # fmt: skip


def test_a_run_that_does_not_get_better_ends_early_and_keeps_its_best(tmp_path: Path, tiny_encoder: str) -> None:
    trainer = tunekit.trainer(
        plan_of(tmp_path, tiny_encoder, early_stopping_patience=3), train_dataset=ROWS, eval_dataset=ROWS[:4]
    )
    trainer.train()
    assert trainer.state.epoch == 4, "the first evaluation is the best, three more are waited for"
    assert trainer.state.best_global_step == 6


def test_evaluations_and_checkpoints_come_at_the_plans_interval(tmp_path: Path, tiny_encoder: str) -> None:
    trainer = tunekit.trainer(
        plan_of(tmp_path, tiny_encoder, eval_interval=5.0, max_steps=12), train_dataset=ROWS, eval_dataset=ROWS[:4]
    )
    trainer.train()
    assert [e["step"] for e in trainer.state.log_history if "eval_loss" in e] == [5, 10, 12]
    share = plan_of(tmp_path / "b", tiny_encoder, eval_interval=0.25, max_steps=12)
    trainer = tunekit.trainer(share, train_dataset=ROWS, eval_dataset=ROWS[:4])
    trainer.train()
    assert [e["step"] for e in trainer.state.log_history if "eval_loss" in e] == [3, 6, 9, 12]


def test_without_rows_to_evaluate_on_the_run_says_why_it_will_not_stop(
    tmp_path: Path, tiny_encoder: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(tmp_path, tiny_encoder, early_stopping_patience=1, eval_interval=0.1, max_steps=8)
    with caplog.at_level(logging.WARNING):
        trainer = tunekit.trainer(plan, train_dataset=ROWS)
    assert "early-stopping-without-rows" in caplog.text
    trainer.train()
    assert trainer.state.global_step == 8


def test_advice_for_a_file_of_rows_stops_early_and_for_few_rows_says_why_not(tmp_path: Path, tiny_encoder: str) -> None:
    import json

    def asked(count: int) -> Any:
        path = tmp_path / f"{count}.jsonl"
        path.write_text(
            "\n".join(json.dumps({**ROWS[i % 24], "text": f"{ROWS[i % 24]['text']} {i}"}) for i in range(count))
        )
        return tunekit.advise(tiny_encoder, path, hardware="24GB", methods=["lora"])

    many, few = asked(400), asked(40)
    assert many.best.plan.data.eval_share == 0.1
    assert many.best.plan.early_stopping_patience == 5
    assert "early-stopping-without-rows" not in {f.code for f in many.findings}
    assert few.best.plan.early_stopping_patience is None
    assert "early-stopping-without-rows" in {f.code for f in few.findings}


@pytest.mark.parametrize("field", [{"early_stopping_patience": 0}, {"eval_interval": 0.0}, {"eval_interval": 2.5}])
def test_values_out_of_range_are_refused(tmp_path: Path, field: dict[str, Any]) -> None:
    from tunekit.errors import InvalidError

    with pytest.raises(InvalidError, match=f"plan-{next(iter(field)).replace('_', '-')}"):
        plan_of(tmp_path, "m", **field)
