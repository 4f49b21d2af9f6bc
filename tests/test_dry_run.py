"""The dry run: it proves what it says on every clean script, finds what reading cannot see, and puts everything back."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_runs import checkpointing, lora, rows, trainer
from torch import nn
from transformers import Trainer

import tunekit
import zoo
from tunekit.discovery import everything
from tunekit.mixin import TunekitTrainer
from tunekit.task import Task

CLS, LM = "sequence-classification", "causal-lm"
M = tunekit.methods


def prepared(folder: Path, architecture: str, task: str, method: Any) -> Trainer:
    model = tunekit.prepare(zoo.build(architecture, Task.named(task)), method, task)
    return trainer(folder, architecture, task, model, cls=TunekitTrainer)


def prompt(folder: Path) -> Trainer:
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return trainer(folder, "gpt2", LM, get_peft_model(zoo.build("gpt2", Task.named(LM)), config))


def half_trained(folder: Path) -> Trainer:
    """With an optimizer that has moments, and with gradients that somebody left."""
    made = trainer(folder)
    optimizer = made.create_optimizer()
    for _ in range(2):
        made.model(**zoo.batch(Task.named(CLS)))["loss"].backward()
        optimizer.step()
    return made


CLEAN: dict[str, Callable[[Path], Trainer]] = {
    "full": lambda f: trainer(f),
    "full, seq2seq": lambda f: trainer(f, "t5", "seq2seq"),
    "full, question answering": lambda f: trainer(f, "bert", "question-answering"),
    "full, checkpointing": lambda f: trainer(f, "llama", LM, **checkpointing()),
    "PEFT's LoRA with a head": lambda f: trainer(f, model=lora("bert", CLS)),
    "PEFT's LoRA": lambda f: trainer(f, "llama", LM, lora("llama", LM)),
    "PEFT's prompt": prompt,
    "half trained": half_trained,
    "LoRA": lambda f: prepared(f, "bert", CLS, M.Lora(r=2)),
    "prefix": lambda f: prepared(f, "llama", LM, M.PrefixTuning(num_virtual_tokens=3)),
    "adapter": lambda f: prepared(f, "bert", "token-classification", M.BottleneckAdapter(reduction_factor=4)),
    "bitfit": lambda f: prepared(f, "gpt2", LM, M.BitFit()),
    "full, ours": lambda f: prepared(f, "bart", "seq2seq", M.Full()),
}


def state(made: Trainer) -> Any:
    """Everything that a step could change."""
    model, optimizer = made.model, made.optimizer
    moments = [(p, copy.deepcopy(s)) for p, s in optimizer.state.items()] if optimizer else None
    groups = [{**g, "params": [*g["params"]]} for g in optimizer.param_groups] if optimizer else None
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training, sorted(vars(m))) for m in model.modules()]
    tensors = {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    wants = {n: p.requires_grad for n, p in model.named_parameters()}
    return tensors, gradients, wants, hooks, moments, groups, numbers, vars(model.config).copy(), made.lr_scheduler


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_script_passes_and_everything_is_as_it_was(name: str, tmp_path: Path) -> None:
    made = CLEAN[name](tmp_path)
    before = state(made)
    found = tunekit.check(made, dry_run=True)
    assert [f.code for f in found] == ["dry-run-passed"], [*map(str, found)]
    for one, other, what in zip(before, state(made), range(9), strict=True):
        assert equal(one, other), what
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("slug", sorted(zoo.methods()))
@pytest.mark.slow
def test_every_method_passes(slug: str, tmp_path: Path) -> None:
    method = zoo.methods()[slug]
    found = tunekit.check(prepared(tmp_path, "bert", CLS, method), dry_run=True)
    assert "dry-run-passed" in [f.code for f in found], [*map(str, found)]


def test_a_run_is_the_same_after_a_dry_run(tmp_path: Path) -> None:
    ends = []
    for dry in (False, True):
        torch.manual_seed(0)
        made = trainer(tmp_path / str(dry), model=lora("bert", CLS, lora_dropout=0.3), save_strategy="no")
        if dry:
            tunekit.check(made, dry_run=True)
        made.train()
        ends.append([p.detach().clone() for p in made.model.parameters()])
    assert equal(*ends)


class Cut(nn.Module):
    """A classifier whose pooler is cut off from the loss."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.idle, self.config = inner, nn.Linear(2, 2), inner.config

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


def moves_frozen(folder: Path) -> Trainer:
    made = trainer(folder, model=lora("bert", CLS))
    frozen = next(p for p in made.model.parameters() if not p.requires_grad)

    def moves(*_: Any) -> None:
        frozen.data.add_(1.0)

    made.model.register_forward_hook(moves)
    return made


def zeroed(folder: Path) -> Trainer:
    made = trainer(folder)
    made.model.classifier.weight.register_hook(torch.zeros_like)
    return made


def unheld(folder: Path) -> Trainer:
    made = trainer(folder)
    held = [p for n, p in made.model.named_parameters() if not n.startswith("classifier")]
    made.optimizer = torch.optim.AdamW(held, lr=1e-3)
    return made


def rounded_away(folder: Path) -> Trainer:
    model = zoo.build("bert", Task.named(CLS)).to(torch.bfloat16)
    return trainer(folder, model=model, learning_rate=1e-9)


def resized_by_hand(folder: Path) -> Trainer:
    model = zoo.build("llama", Task.named(LM))
    model.model.embed_tokens = nn.Embedding(120, 32)
    return trainer(folder, "llama", LM, model)


def unsaved(folder: Path) -> Trainer:
    model = lora("bert", CLS, task_type=None)
    model.base_model.model.classifier.weight.requires_grad_(True)
    return trainer(folder, model=model)


def crashing(folder: Path) -> Trainer:
    made = trainer(folder, given={"train_dataset": [{**r, "labels": 7} for r in rows(CLS)]})
    made.model.config.problem_type = "single_label_classification"
    return made


def no_memory(folder: Path) -> Trainer:
    made = trainer(folder)

    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    made.model.bert.encoder.layer[-1].register_forward_pre_hook(fails)
    return made


def endless(folder: Path) -> Trainer:
    made = trainer(folder)
    made.model.register_forward_hook(lambda m, a, out: out.__setitem__("loss", out["loss"] * float("inf")))
    return made


PLANTED: dict[str, Callable[[Path], Trainer]] = {
    "gradient-missing": lambda f: trainer(f, model=Cut(zoo.build("bert", Task.named(CLS)))),
    "gradient-zero": zeroed,
    "frozen-moved": moves_frozen,
    "weights-unmoved": unheld,
    "loss-not-finite": endless,
    "dry-run-failed": crashing,
    "dry-run-out-of-memory": no_memory,
    "reload-differs": unsaved,
}


@pytest.mark.parametrize("code", PLANTED)
def test_a_planted_mistake_is_found_and_everything_is_put_back(code: str, tmp_path: Path) -> None:
    made = PLANTED[code](tmp_path)
    before = state(made)
    found = tunekit.check(made, dry_run=True)
    assert code in [f.code for f in found], [*map(str, found)]
    assert "dry-run-passed" not in [f.code for f in found]
    for one, other, what in zip(before, state(made), range(9), strict=True):
        assert equal(one, other), what


def test_steps_that_are_rounded_away_are_seen(tmp_path: Path) -> None:
    assert "weights-unmoved" in [f.code for f in tunekit.check(rounded_away(tmp_path), dry_run=True)]


def test_embeddings_that_are_not_read_back_are_seen(tmp_path: Path) -> None:
    assert "reload-failed" in [f.code for f in tunekit.check(resized_by_hand(tmp_path), dry_run=True)]


def test_a_stream_is_not_read(tmp_path: Path) -> None:
    from datasets import Dataset

    stream = Dataset.from_list(rows(CLS)).to_iterable_dataset()
    made = trainer(tmp_path, given={"train_dataset": stream})
    assert "dry-run-skipped" in [f.code for f in tunekit.check(made, dry_run=True)]


def test_the_longest_rows_are_those_that_are_run(tmp_path: Path) -> None:
    from tunekit.dry_run import longest_batch

    made = trainer(tmp_path, per_device_train_batch_size=3)
    batch = longest_batch(made)
    assert batch is not None
    lengths = sorted((len(r["input_ids"]) for r in rows(CLS)), reverse=True)
    assert sorted(batch["attention_mask"].sum(1).tolist(), reverse=True) == lengths[:3]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL's own default
def test_a_sft_trainer_passes_with_its_metrics_untouched(tiny_decoder: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    words = ["alpha", "beta", "gamma", "delta"]
    texts = [{"text": " ".join([words[(i + j) % 4] for j in range(2 + i % 7)]) + f" {i}"} for i in range(30)]
    args = trl.SFTConfig(
        str(tmp_path), report_to="none", use_cpu=True, max_steps=1, max_length=60, bf16=False, learning_rate=1e-4
    )
    made = trl.SFTTrainer(tiny_decoder, args=args, train_dataset=Dataset.from_list(texts))
    found = tunekit.check(made, dry_run=True)
    assert [f.code for f in found] == ["dry-run-passed"], [*map(str, found)]
    assert not made._metrics["train"]


def test_a_plan_is_run_dry_from_the_command_line(tiny_encoder: str, tmp_path: Path) -> None:
    import json

    from typer.testing import CliRunner

    from tunekit.cli.main import app

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"the sun {i}", "label": i % 2}) + "\n" for i in range(12)))  # fmt: skip
    data = tunekit.DataSpec(path=str(tmp_path / "rows.jsonl"))
    plan = tunekit.Plan(model=tiny_encoder, task=CLS, method=M.Lora(r=2), data=data, output_dir=str(tmp_path / "out"))
    plan.save(tmp_path / "plan.yaml")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "plan.yaml"), "--dry-run"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "[dry-run-passed]" in result.stdout
    assert not (tmp_path / "out").exists()


def test_there_is_a_method_to_try() -> None:
    assert {"lora", "full"} <= {*everything("method")}
