"""Every callback, found by itself: drops into a plain Trainer, alone and with the others, and changes no loss."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from tunekit.discovery import everything

CALLBACKS = everything("callback")
rng = random.Random(5)
ROWS = [{"input_ids": [rng.randrange(1, 50) for _ in range(8)], "labels": i % 3} for i in range(48)]


class Losses(TrainerCallback):
    """Takes down each logged loss."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        self.seen += [logs[k] for k in ("loss", "grad_norm", "eval_loss") if k in logs]


def train(folder: Path, callbacks: list[TrainerCallback]) -> tuple[list[float], list[torch.Tensor]]:
    """Two epochs with dropout, in which every draw of a random number would show."""
    set_seed(1)
    model = BertForSequenceClassification(
        BertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=50,
            num_labels=3,
        )
    )
    args = TrainingArguments(
        str(folder), num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=2, logging_steps=1,
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, report_to="none", use_cpu=True,
        disable_tqdm=True, learning_rate=1e-3,
    )  # fmt: skip
    losses = Losses()
    trainer = Trainer(model, args, train_dataset=ROWS, eval_dataset=ROWS[:8], callbacks=[*callbacks, losses])
    trainer.train()
    trainer.evaluate()
    return losses.seen, [p.detach().clone() for p in model.parameters()]


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], list[torch.Tensor]]:
    return train(tmp_path_factory.mktemp("without"), [])


def same(one: tuple[list[float], list[torch.Tensor]], other: tuple[list[float], list[torch.Tensor]]) -> bool:
    return one[0] == other[0] and all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


def test_there_are_callbacks_to_test() -> None:
    assert {"run-record", "memory-watch", "progress"} <= set(CALLBACKS)


@pytest.mark.parametrize("slug", sorted(CALLBACKS))
def test_trajectory_is_bit_identical_with_the_callback_alone(slug: str, without: Any, tmp_path: Path) -> None:
    assert same(train(tmp_path, [CALLBACKS[slug]()]), without)


def test_trajectory_is_bit_identical_with_all_callbacks_together(without: Any, tmp_path: Path) -> None:
    assert same(train(tmp_path, [cls() for cls in CALLBACKS.values()]), without)


def test_the_comparison_notices_one_drawn_random_number(without: Any, tmp_path: Path) -> None:
    class Draws(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            torch.rand(1)

    assert not same(train(tmp_path, [Draws()]), without)


@pytest.mark.parametrize("slug", sorted(CALLBACKS))
def test_a_callback_is_a_trainer_callback_with_its_slug_and_needs_no_argument(slug: str) -> None:
    cls = CALLBACKS[slug]
    assert issubclass(cls, TrainerCallback)
    assert cls.slug == slug
    assert cls.__doc__
    assert "Example:" in cls.__doc__
    assert isinstance(cls(), TrainerCallback)


@pytest.mark.parametrize("slug", sorted(CALLBACKS))
def test_every_event_tolerates_that_nothing_but_the_three_arguments_is_given(slug: str, tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState

    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    events = [name for name in dir(TrainerCallback) if name.startswith("on_") and name != "on_predict"]
    callback, state = CALLBACKS[slug](), TrainerState()
    for name in [*events, *events]:
        getattr(callback, name)(args, state, TrainerControl())
