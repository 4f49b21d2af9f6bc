"""Distillation: its losses are those of an independent reference in float64, and a Trainer learns with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distilled import ROWS, VocabularySized, batch_of, pair
from transformers import LlamaConfig, LlamaForCausalLM

import tunekit
import zoo
from tunekit.contracts import Objective
from tunekit.discovery import everything
from tunekit.errors import MissingError, TunekitError, UnsupportedError
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.objectives.distillation import Distillation
from tunekit.task import TASKS, Task

KINDS = [("bert", t.name) for t in TASKS if zoo.fits("bert", t)] + [("llama", "causal-lm"), ("t5", "seq2seq"), ("bart", "seq2seq")]  # fmt: skip


# ---------------------------------------------------------------- the reference: numpy, float64, one item at a time
def soften(logits: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(logits / temperature - (logits / temperature).max())
    return powers / powers.sum()


def reference_divergence(s: np.ndarray, t: np.ndarray, kind: str, temperature: float, beta: float) -> float:
    q, p = soften(s, temperature), soften(t, temperature)
    if kind == "forward-kl":
        return float((p * np.log(p / q)).sum()) * temperature**2
    if kind == "reverse-kl":
        return float((q * np.log(q / p)).sum()) * temperature**2
    m = beta * p + (1 - beta) * q
    return temperature**2 * float(beta * (p * np.log(p / m)).sum() + (1 - beta) * (q * np.log(q / m)).sum())


def items(task: str, s: Any, t: Any, batch: dict[str, torch.Tensor]) -> list[list[tuple[np.ndarray, np.ndarray, int]]]:
    """For each supervised item its pairs of logits and the right answer."""
    mask = batch["attention_mask"].numpy()
    if task == "question-answering":
        ends = [(s[f"{e}_logits"].numpy(), t[f"{e}_logits"].numpy(), batch[f"{e}_positions"].numpy()) for e in ("start", "end")]  # fmt: skip
        assert (mask.sum(1) >= 1).all()
        return [[(a[i], b[i], int(y[i])) for a, b, y in ends] for i in range(len(mask))]
    a, b, y = s["logits"].numpy(), t["logits"].numpy(), batch["labels"].numpy()
    if task == "causal-lm":
        a, b, y = a[:, :-1], b[:, :-1], y[:, 1:]
    if y.ndim == 1:
        return [[(a[i], b[i], int(y[i]))] for i in range(len(y))]
    return [[(a[i, j], b[i, j], int(y[i, j]))] for i in range(len(y)) for j in range(y.shape[1]) if y[i, j] != -100]


def reference(task: str, objective: Distillation, s: Any, t: Any, batch: dict[str, torch.Tensor]) -> float:
    found, mask = items(task, s, t, batch), batch["attention_mask"].numpy().astype(bool)
    losses = []
    for i, parts in enumerate(found):
        each = []
        for a, b, y in parts:
            a, b = a.astype(np.float64), b.astype(np.float64)
            real = mask[i] if task == "question-answering" else slice(None)
            soft = reference_divergence(a[real], b[real], objective.divergence, objective.temperature, objective.beta)
            hard = -np.log(soften(a, 1.0)[y])
            each.append(objective.hard_weight * hard + (1 - objective.hard_weight) * soft)
        losses.append(np.mean(each))
    return float(np.mean(losses))


@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl", "jsd"])
@pytest.mark.parametrize(("architecture", "task"), KINDS)
def test_the_loss_is_that_of_an_independent_float64_reference(architecture: str, task: str, kind: Any) -> None:
    student, teacher = pair(architecture, task)
    objective = Distillation(divergence=kind, temperature=3.0, hard_weight=0.3, beta=0.2, positions_at_once=5)
    objective, batch = objective.taught_by(teacher), batch_of(task)
    student.train()  # without dropout; the pieces are those of training
    with torch.no_grad():
        s, t = student(**batch), teacher(**batch)
        want, got = reference(task, objective, s, t, batch), objective.loss(student, batch)[0]
    assert got.item() == pytest.approx(want, rel=1e-5, abs=1e-5)
    assert objective.loss(student.eval(), batch)[0].item() == pytest.approx(want, rel=1e-5, abs=1e-5)


def test_regression_and_several_labels_are_learnt_from_the_teachers_numbers() -> None:
    for problem, labels in (("regression", torch.randn(4, 3)), ("multi_label_classification", torch.ones(4, 3))):
        student, teacher = pair("bert", "sequence-classification")
        student.config.problem_type = problem
        batch = {**batch_of("sequence-classification"), "labels": labels}
        with torch.no_grad():
            s, t = (m(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])["logits"] for m in (student, teacher))  # fmt: skip
            got = Distillation(hard_weight=0.0, temperature=2.0).taught_by(teacher).loss(student, batch)[0]
        p, q = (torch.sigmoid(x.double() / 2) for x in (t, s))
        kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        want = ((s - t) ** 2).mean() if problem == "regression" else 4 * kl.mean()
        assert got.item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize(("architecture", "task"), KINDS)
def test_the_gradient_of_a_batch_is_the_sum_over_its_parts(architecture: str, task: str) -> None:
    student, teacher = pair(architecture, task)
    objective, batch = Distillation(positions_at_once=6).taught_by(teacher), batch_of(task)
    student.train()

    def gradients(parts: list[dict[str, torch.Tensor]], number: Any) -> list[torch.Tensor]:
        student.zero_grad()
        for part in parts:
            objective.loss(student, part, number)[0].backward()
        return [p.grad.clone() for p in student.parameters() if p.grad is not None]

    rows = len(batch["input_ids"])
    labels = batch.get("labels", batch["input_ids"][:, :1])
    number = (labels[:, 1:] if task == "causal-lm" else labels).ne(-100).sum()
    halves = [{k: v[i : i + rows // 2] for k, v in batch.items()} for i in (0, rows // 2)]
    for a, b in zip(gradients([batch], None), gradients(halves, number), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, a.abs().max().item()))
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_vocabularies_padded_to_different_sizes_are_compared_in_what_both_have() -> None:
    student, teacher = pair("llama", "causal-lm")
    batch = batch_of("causal-lm")
    want = Distillation(hard_weight=0.0).taught_by(teacher).loss(student, batch)[0]
    teacher.resize_token_embeddings(128)
    got = Distillation(hard_weight=0.0).taught_by(teacher).loss(student, batch)[0]
    assert got.item() == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize("cached", [False, True])
def test_what_is_as_wide_as_the_vocabulary_does_not_grow_with_the_length(cached: bool) -> None:
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=997
    )
    student, teacher = LlamaForCausalLM(config).train(), LlamaForCausalLM(config)

    def most(length: int, at_once: int = 32) -> int:
        ids = torch.randint(0, 997, (2, length))
        objective = Distillation(positions_at_once=at_once, cache="unused" if cached else None).taught_by(teacher)
        batch = {"input_ids": ids, "labels": ids}
        if cached:
            answered = {
                "teacher_ids": ids[..., None].expand(-1, -1, 8),
                "teacher_logs": torch.full((2, length, 8), -3.0),
            }
            batch |= {**answered, "teacher_tail": torch.full((2, length), -1.0)}
        with VocabularySized(997) as seen:
            objective.loss(student, batch)[0].backward()
        return seen.most

    assert most(512) == most(64)
    assert most(512, at_once=10_000) > 10 * most(512)


def test_a_model_that_changes_its_logits_after_the_output_layer_is_seen() -> None:
    config = zoo.config("llama")
    student, teacher = LlamaForCausalLM(config).train(), pair("llama", "causal-lm")[1]
    batch, objective = batch_of("causal-lm"), Distillation(hard_weight=1.0).taught_by(teacher)
    plain = student.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        outputs = plain(*args, **kwargs)
        outputs["logits"] = torch.tanh(outputs["logits"]) * 3
        return outputs

    student.forward = capped
    logits = student(batch["input_ids"], attention_mask=batch["attention_mask"])["logits"]
    want = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert objective.loss(student, batch)[0].item() == pytest.approx(want.item(), rel=1e-6)


# ---------------------------------------------------------------- through the Trainer
@pytest.fixture(scope="module")
def taught(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the tiny encoder fine-tuned on the rows."""
    folder = tmp_path_factory.mktemp("taught")
    plan = tunekit.Plan(
        model=tiny_encoder, task="sequence-classification", method=Full(), output_dir=str(folder / "run"), max_steps=40,
        learning_rate=3e-3, warmup=0.0,
    )  # fmt: skip
    trainer = tunekit.trainer(plan, train_dataset=ROWS, disable_tqdm=True)
    trainer.train()
    trainer.save_model(str(folder / "teacher"))
    return str(folder / "teacher")


@pytest.mark.parametrize("method", [Full(), Lora(r=4)], ids=["full", "lora"])
def test_a_plan_distils_from_file_and_the_teacher_is_not_saved(
    method: Any, tiny_encoder: str, taught: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    before = Path(taught, "model.safetensors").read_bytes()
    plan = tunekit.Plan(
        model=tiny_encoder, task="sequence-classification", method=method, output_dir=str(tmp_path / "run"), max_steps=30,
        learning_rate=5e-3, warmup=0.0, gradient_accumulation_steps=2, per_device_train_batch_size=4,
        data=tunekit.DataSpec(path=str(rows)), objective=Distillation(teacher=taught, hard_weight=0.0),
    )  # fmt: skip
    loaded = tunekit.Plan.load(plan.save(tmp_path / "plan.yaml"))
    assert loaded == plan
    trainer = tunekit.trainer(loaded, disable_tqdm=True, logging_steps=5)
    trainer.train()
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert losses[-1] < 0.5 * losses[0], losses
    learning = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
    teacher = loaded.objective.teacher_of(trainer.model)
    assert not teacher.training
    assert not learning & {id(p) for p in teacher.parameters()}
    trainer.save_model(str(tmp_path / "saved"))
    assert not any("teacher" in name for name, _ in trainer.model.named_modules())
    assert Path(taught, "model.safetensors").read_bytes() == before


def test_accumulation_trains_as_one_batch_does(tiny_encoder: str, taught: str, tmp_path: Path) -> None:
    def trained(rows: int, parts: int) -> Any:
        plan = tunekit.Plan(
            model=tiny_encoder, task="sequence-classification", method=Full(), output_dir=str(tmp_path / str(parts)), max_steps=2,
            learning_rate=0.1, optim="sgd", per_device_train_batch_size=rows, gradient_accumulation_steps=parts,
            objective=Distillation(teacher=taught), max_grad_norm=1e9, warmup=0.0,
        )  # fmt: skip
        trainer = tunekit.trainer(plan, train_dataset=ROWS, disable_tqdm=True)
        trainer.train()
        return trainer.model

    for p, q in zip(trained(8, 1).parameters(), trained(2, 4).parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


def test_what_cannot_teach_is_refused(tiny_encoder: str, tiny_decoder: str, taught: str, tmp_path: Path) -> None:
    def refused(objective: Distillation, rows: Any = ROWS, task: str = "sequence-classification", model: str = tiny_encoder) -> tuple[str, ...]:  # fmt: skip
        plan = tunekit.Plan(
            model=model, task=task, method=Full(), output_dir=str(tmp_path / "run"), objective=objective
        )
        with pytest.raises(TunekitError) as caught:
            tunekit.trainer(plan, train_dataset=rows, disable_tqdm=True)
        assert isinstance(caught.value, UnsupportedError | MissingError)
        return caught.value.codes

    three = [{**r, "label": "abc"[i % 3]} for i, r in enumerate(ROWS)]
    swapped = [{**r, "label": {"yes": "maybe", "no": "never"}[r["label"]]} for r in ROWS]
    assert refused(Distillation()) == ("distillation-no-teacher",)
    assert refused(Distillation(teacher="./nowhere")) == ("distillation-teacher-missing",)
    assert refused(Distillation(teacher=tiny_encoder)) == ("distillation-teacher-head",)
    assert refused(Distillation(teacher=taught), three) == ("distillation-classes",)
    assert refused(Distillation(teacher=taught), swapped) == ("distillation-classes",)
    other = zoo.build("llama", Task.named("causal-lm"))
    assert refused(Distillation().taught_by(other), [{"text": "a b"}], "causal-lm", tiny_decoder) == ("distillation-vocabulary",)  # fmt: skip
    with pytest.raises(TunekitError) as caught:
        Distillation(temperature=0.0, hard_weight=2.0, beta=1.0)
    assert caught.value.codes == ("distillation-range",) * 3


@pytest.mark.parametrize("length", [16, 64])
def test_the_simulator_sees_the_teacher_and_pieces_of_the_vocabulary(tiny_decoder: str, length: int) -> None:
    plan = tunekit.Plan(
        model=tiny_decoder, task="causal-lm", method=Full(), max_length=length, per_device_train_batch_size=4,
        learning_rate=1e-3,
    )  # fmt: skip
    plain = tunekit.estimate_memory(plan, "cpu")
    objective = Distillation(teacher=tiny_decoder, positions_at_once=16)
    teaching = tunekit.estimate_memory(plan.replace(objective=objective), "cpu")
    size = sum(p.numel() * 4 for p in LlamaForCausalLM.from_pretrained(tiny_decoder).parameters())
    assert teaching.parts["weights"] - plain.parts["weights"] == pytest.approx(size, rel=0.05)


def test_every_objective_is_found_and_told() -> None:
    found = everything("objective")
    assert {"supervised", "distillation"} <= set(found)
    assert all(issubclass(cls, Objective) and cls.title and cls.reference for cls in found.values())
