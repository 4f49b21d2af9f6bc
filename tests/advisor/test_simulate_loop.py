"""The loop that is described is the Trainer's: the same tensors live at the same time in a real training step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from simulated import peak_bytes, step
from transformers import Trainer, TrainingArguments

import zoo
from tunekit.advisor.simulate.checkpointing import enable_checkpointing
from tunekit.advisor.simulate.collated import Shape, make_batch
from tunekit.advisor.simulate.depth import find_stacks
from tunekit.advisor.simulate.loop import Prepared, record_step
from tunekit.advisor.simulate.record import output_head
from tunekit.advisor.simulate.trace import Recorder
from tunekit.advisor.weightless import build
from tunekit.task import Task

SHAPE = Shape(batch=4, length=16)


def steps_of_a_trainer(architecture: str, task: Task, folder: Path, checkpoints: bool) -> int:
    """Peak bytes of the second step of a Trainer, watched from outside."""
    model = zoo.build(architecture, task)
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", optim="adamw_torch", max_steps=2
    )  # fmt: skip
    trainer = Trainer(model, arguments)
    trainer.create_optimizer_and_scheduler(2)
    if checkpoints:
        enable_checkpointing(model)
    model.config.use_cache = False

    def take_step() -> None:
        inputs = make_batch(task, model, SHAPE, "cpu")
        recorder.own(inputs.values(), "activations")
        items = torch.tensor(10)
        with recorder:
            recorder.moment = "forward"
            trainer.training_step(model, inputs, items)
            recorder.moment = "optimizer"
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            trainer.optimizer.step()
            model.zero_grad()

    recorder = Recorder("cpu", padded=True, weightless=False)
    take_step()
    recorder = Recorder("cpu", padded=True, weightless=False)
    recorder.ignore(s["step"] for s in trainer.optimizer.state.values())
    recorder.own([*model.parameters(), *model.buffers()], "weights")
    recorder.own([t for s in trainer.optimizer.state.values() for n, t in s.items() if n != "step"], "optimizer")
    take_step()
    return peak_bytes(recorder.close())


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize(
    ("architecture", "task_name"), [("llama", "causal-lm"), ("bert", "sequence-classification"), ("t5", "seq2seq")]
)
def test_the_described_loop_is_the_trainers(
    architecture: str, task_name: str, checkpoints: bool, tmp_path: Path
) -> None:
    task = Task.named(task_name)
    real = steps_of_a_trainer(architecture, task, tmp_path, checkpoints)
    model = build(zoo.config(architecture), task)
    stacks = [list(blocks) for _, blocks in find_stacks(model)]
    originals = frozenset(id(p) for p in model.parameters())
    on = Prepared(model=model, stacks=stacks, head=output_head(model), originals=originals)
    trace, _ = record_step(on, task, SHAPE, step(checkpoints=checkpoints))
    described = peak_bytes(trace)
    assert abs(described - real) <= 0.001 * real, f"described {described}, real {real}"
