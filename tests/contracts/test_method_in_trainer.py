"""Every method in a plain `transformers.Trainer` that knows nothing of tunekit: save, resume, best model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import zoo
from tunekit.attach import load, prepare, prepared
from tunekit.contracts import Method
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.methods.partial import Partial
from tunekit.task import TASKS, Task

METHODS = zoo.methods()
VARIANTS = {
    **METHODS,
    "lora-pissa": Lora(r=4, init_lora_weights="pissa_niter_2", lora_alpha=4),
    "lora-olora-rs": Lora(r=4, init_lora_weights="olora", use_rslora=True),
    "partial-scheduled": Partial(layer_lr_decay=2.6, unfreeze_every=1, unfreeze_unit="steps"),
}
TASK = Task.named("sequence-classification")


class Rows(Dataset):
    def __init__(self, task: Task) -> None:
        self.all = zoo.batch(task, rows=16 if task.name == "multiple-choice" else 8)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {name: values[i] for name, values in self.all.items()}


def model_for(method: Method, architecture: str = "bert", task: Task = TASK) -> nn.Module:
    return prepare(zoo.build(architecture, task), method, task)


def trainer_for(model: nn.Module, folder: Path, task: Task = TASK, **arguments: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_steps": 2, "save_strategy": "steps",
        "report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 1, "seed": 3, "dataloader_pin_memory": False,
    }  # fmt: skip
    args = TrainingArguments(output_dir=str(folder), **{**settings, **arguments})
    needed = list(prepared(model).method.callbacks())
    return Trainer(model=model, args=args, train_dataset=Rows(task), eval_dataset=Rows(task), callbacks=needed)


def learnt(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("slug", VARIANTS)
def test_a_resumed_run_ends_where_the_whole_one_does(slug: str, tmp_path: Path) -> None:
    whole = trainer_for(model_for(VARIANTS[slug]), tmp_path)
    whole.train()
    resumed = trainer_for(model_for(VARIANTS[slug]), tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected, found = learnt(whole.model), learnt(resumed.model)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[k], found[k]) for k in expected)


@pytest.mark.parametrize("slug", VARIANTS)
def test_a_checkpoint_attaches_to_a_fresh_base(slug: str, tmp_path: Path) -> None:
    trainer = trainer_for(model_for(VARIANTS[slug]), tmp_path)
    trainer.train()
    trainer.save_model()
    expected = zoo.logits(trainer.model, zoo.batch(TASK))
    for folder in (tmp_path, tmp_path / "checkpoint-4"):
        again = load(zoo.build("bert", TASK), folder)
        assert (zoo.logits(again, zoo.batch(TASK)) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("slug", VARIANTS)
def test_the_best_checkpoint_comes_back_at_the_end(slug: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Rates far too high from the second step on, so that the first checkpoint is the best one.
    trainer = trainer_for(
        model_for(VARIANTS[slug]), tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=1, save_steps=1,
        learning_rate=1.0, lr_scheduler_type="constant_with_warmup", warmup_steps=2,
    )  # fmt: skip
    trainer.train()
    scores = {s["step"]: s["eval_loss"] for s in trainer.state.log_history if "eval_loss" in s}
    best = min(scores, key=scores.__getitem__)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(scores[best], rel=1e-5)
    assert len({round(s, 4) for s in scores.values()}) > 1


@pytest.mark.parametrize("slug", [slug for slug, m in METHODS.items() if m.own_format])
def test_a_checkpoint_of_ours_holds_what_was_learnt_and_nothing_else(slug: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trainer = trainer_for(model_for(METHODS[slug]), tmp_path)
    trainer.train()
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert saved.keys() == learnt(trainer.model).keys()
    assert not (tmp_path / "checkpoint-4" / "config.json").exists()


@pytest.mark.parametrize("slug", METHODS)
def test_resuming_says_nothing_about_missing_tensors(
    slug: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer_for(model_for(METHODS[slug]), tmp_path).train()
    with caplog.at_level("WARNING"):
        import transformers

        transformers.logging.enable_propagation()
        try:
            trainer_for(model_for(METHODS[slug]), tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        finally:
            transformers.logging.disable_propagation()
    assert "keys in the checkpoint" not in caplog.text


def test_fused_experts_resume_whole(tmp_path: Path) -> None:
    task = Task.named("causal-lm")
    whole = trainer_for(model_for(Full(), "mixtral", task), tmp_path, task)
    whole.train()
    resumed = trainer_for(model_for(Full(), "mixtral", task), tmp_path, task)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected, found = learnt(whole.model), learnt(resumed.model)
    assert all(torch.equal(expected[k], found[k]) for k in expected)


@pytest.mark.parametrize("name", [t.name for t in TASKS])
def test_an_adapter_trains_and_is_evaluated_on_every_task(name: str, tmp_path: Path) -> None:
    task = Task.named(name)
    architecture = {"causal-lm": "llama", "seq2seq": "t5"}.get(name, "bert")
    trainer = trainer_for(model_for(Lora(r=4), architecture, task), tmp_path, task, max_steps=12, save_strategy="no")
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
