"""What each guard sees in a plain Trainer, and what it does about it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_runs import Pad, rows, trainer
from transformers import Trainer, TrainerCallback

import tunekit
import zoo
from tunekit.callbacks import (
    CheckpointVerify,
    GeneralizationGuard,
    LossGuard,
    Preemption,
    RetentionProbe,
    Throughput,
)
from tunekit.checkpoint import MANIFEST
from tunekit.errors import RunError
from tunekit.mixin import TunekitTrainer
from tunekit.task import Task

CLS, LM = "sequence-classification", "causal-lm"


def run(
    folder: Path, *callbacks: TrainerCallback, resume: Any = None, given: dict | None = None, **settings: Any
) -> Trainer:
    made = trainer(
        folder,
        given={"callbacks": [*callbacks], **(given or {})},
        **{"logging_steps": 1, "disable_tqdm": True, "save_strategy": "no", **settings},
    )
    made.train(resume_from_checkpoint=resume)
    return made


class AtStep(TrainerCallback):
    """Does something at the beginning of one step."""

    def __init__(self, step: int, does: Any) -> None:
        self.step, self.does = step, does

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.does(kwargs["model"])


def spoil(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")


# ---------------------------------------------------------------------- throughput
def test_throughput_counts_real_tokens_and_no_padding(tmp_path: Path) -> None:
    meter = Throughput(peak_flops=1e12)
    data = rows(CLS)
    run(tmp_path, meter, num_train_epochs=1, max_steps=-1, given={"train_dataset": data})
    assert meter.to_dict()["tokens"] == sum(len(r["input_ids"]) for r in data)
    last = meter.history[-1]
    assert last["seconds_left"] == 0
    assert 0 < last["mfu"] < 1
    assert last["mfu"] == pytest.approx(last["flops_per_second"] / 1e12)


def test_throughput_does_not_count_evaluation(tmp_path: Path) -> None:
    meter = Throughput()
    data = rows(CLS)
    made = run(tmp_path, meter, num_train_epochs=1, max_steps=-1, eval_strategy="epoch", given={"train_dataset": data})
    assert meter.to_dict()["tokens"] == sum(len(r["input_ids"]) for r in data)
    assert not made.model._forward_pre_hooks


def test_frozen_weights_cost_no_gradient_of_their_own() -> None:
    from tunekit.callbacks.throughput import token_flops

    model = zoo.build("bert", Task.named(CLS))
    every = token_flops(model)
    for p in model.parameters():
        p.requires_grad_(False)
    assert token_flops(model) == every * 4 // 6


# ---------------------------------------------------------------------- generalization
def learnt_by_heart(folder: Path, guard: TrainerCallback, **settings: Any) -> Trainer:
    """Sixteen rows with random labels: the training loss falls and the other one rises."""
    data = {
        "train_dataset": rows(CLS, 16),
        "eval_dataset": [{**r, "labels": i % 3 % 2} for i, r in enumerate(rows(CLS, 16, 7))],
    }
    torch.manual_seed(0)
    return run(
        folder,
        guard,
        given=data,
        num_train_epochs=40,
        max_steps=-1,
        eval_strategy="epoch",
        learning_rate=5e-3,
        **settings,
    )


def test_the_guard_stops_where_rows_are_learnt_by_heart_and_gives_the_best_weights_back(tmp_path: Path) -> None:
    guard = GeneralizationGuard()
    made = learnt_by_heart(tmp_path, guard)
    assert made.state.epoch < 40
    assert [f.code for f in guard.findings] == ["overfitting"]
    best = min(h["eval_loss"] for h in guard.history)
    assert made.evaluate()["eval_loss"] == pytest.approx(best, abs=1e-6)
    assert guard.history[-1]["eval_loss"] > best


def test_the_guard_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    guard = GeneralizationGuard(patience=2, restore=False)
    made = learnt_by_heart(tmp_path, guard)
    losses = [h["eval_loss"] for h in guard.history]
    assert len(losses) == losses.index(min(losses)) + 3
    assert made.evaluate()["eval_loss"] == pytest.approx(losses[-1], abs=1e-6)


# ---------------------------------------------------------------------- loss
def test_the_first_batch_without_a_finite_loss_is_named_and_the_run_stops(tmp_path: Path) -> None:
    guard = LossGuard()
    made = run(tmp_path, guard, AtStep(3, spoil), max_steps=20, logging_steps=2)
    assert [f.code for f in guard.findings if f.severity == "error"] == ["loss-not-finite"]
    finding = next(f for f in guard.findings if f.code == "loss-not-finite")
    assert "batch 1 of step 4 is nan" in finding.seen
    assert "`bert." in finding.seen
    assert made.state.global_step == 4
    assert not made.model._forward_hooks


def test_a_run_that_is_only_warned_goes_on(tmp_path: Path) -> None:
    guard = LossGuard(on_nan="warn")
    made = run(tmp_path, guard, AtStep(1, spoil), max_steps=4)
    assert "loss-not-finite" in [f.code for f in guard.findings]
    assert made.state.global_step == 4


@pytest.mark.parametrize(
    ("losses", "norm", "code"),
    [([1.0] * 10 + [9.0], 1.0, "loss-spike"), ([1.0] * 31, 1.0, "loss-flat"), ([1.0], 0.0, "gradient-zero")],
)
def test_the_course_of_the_loss_is_told_once(losses: list[float], norm: float, code: str, tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    guard, args, state = LossGuard(), TrainingArguments(str(tmp_path), report_to="none", use_cpu=True), TrainerState()
    for loss in losses:
        guard.on_log(args, state, TrainerControl(), logs={"loss": loss, "grad_norm": norm})
    assert [f.code for f in guard.findings] == [code]


def test_a_falling_loss_is_no_finding(tmp_path: Path) -> None:
    guard = LossGuard()
    run(tmp_path, guard, max_steps=15)
    assert guard.findings == ()


# ---------------------------------------------------------------------- preemption
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_brings_a_checkpoint_an_exit_code_and_an_identical_resumption(name: str, tmp_path: Path) -> None:
    before = signal.getsignal(getattr(signal, name))
    kill = AtStep(2, lambda model: os.kill(os.getpid(), getattr(signal, name)))
    torch.manual_seed(0)
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "told", Preemption(), kill, max_steps=6)
    assert caught.value.code == 75
    assert [p.name for p in (tmp_path / "told").glob("checkpoint-*")] == ["checkpoint-3"]
    assert signal.getsignal(getattr(signal, name)) is before
    torch.manual_seed(0)
    again = run(tmp_path / "told", Preemption(), max_steps=6, resume=True)
    torch.manual_seed(0)
    whole = run(tmp_path / "whole", max_steps=6)
    for p, q in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_host_keeps_the_signal_where_it_wants_it(tmp_path: Path) -> None:
    from types import SimpleNamespace

    callback, before = Preemption(), signal.getsignal(signal.SIGTERM)
    callback.on_train_begin(SimpleNamespace(enable_jit_checkpoint=True), SimpleNamespace(), SimpleNamespace())
    assert signal.getsignal(signal.SIGTERM) is before


# ---------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("cls", [Trainer, TunekitTrainer])
def test_a_good_checkpoint_is_verified_and_sealed(cls: type[Trainer], tmp_path: Path) -> None:
    verify = CheckpointVerify()
    made = trainer(tmp_path, given={"callbacks": [verify]}, cls=cls, save_strategy="steps", save_steps=1)
    made.train()
    assert verify.verified == ["checkpoint-1", "checkpoint-2"]
    assert (tmp_path / "checkpoint-2" / MANIFEST).is_file()
    assert tunekit.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


class Spoils(Trainer):
    """Writes checkpoints with a fault."""

    fault = ""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self.fault == "nan":
            spoil(self.model)
        super()._save_checkpoint(*args, **kwargs)
        if self.fault == "differs":
            with torch.no_grad():
                self.model.classifier.weight += 1
        if self.fault == "torn":
            path = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / "model.safetensors"
            path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(("fault", "code"), [("nan", "not-finite"), ("differs", "differs"), ("torn", "torn")])
def test_a_bad_checkpoint_stops_the_run(fault: str, code: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, given={"callbacks": [CheckpointVerify()]}, cls=Spoils, save_strategy="steps", save_steps=1)
    made.fault = fault
    with pytest.raises(RunError) as caught:
        made.train()
    assert caught.value.codes == (f"checkpoint-{code}",)


# ---------------------------------------------------------------------- retention
def test_drift_is_measured_on_general_text_and_told(tiny_decoder: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["the sun is red and the moon is blue", "alice went to rome"]
    probe, model = RetentionProbe(texts=texts, most=0.05), AutoModelForCausalLM.from_pretrained(tiny_decoder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    known = [{"input_ids": i, "labels": i} for i in tokenizer(texts)["input_ids"]]
    general = trainer(tmp_path, model=model, max_steps=20, save_strategy="no", given={"train_dataset": known})
    general.train()
    made = trainer(
        tmp_path, model=model, eval_strategy="steps", eval_steps=5, max_steps=20,
        learning_rate=5e-2, save_strategy="no",
        given={
            "callbacks": [probe], "train_dataset": rows(LM), "eval_dataset": rows(LM, 4), "data_collator": Pad(),
            "processing_class": tokenizer,
        },
    )  # fmt: skip
    made.train()
    assert [h["step"] for h in probe.history] == [0, 5, 10, 15, 20, 20]
    assert probe.history[0]["drift"] == 0
    assert probe.drift > 0.05
    assert [f.code for f in probe.findings] == ["retention-drift"]


def test_a_model_that_does_not_write_is_left_alone(tmp_path: Path) -> None:
    probe = RetentionProbe()
    run(tmp_path, probe)
    assert probe.history == []
