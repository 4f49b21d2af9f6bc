"""A teacher's answers on disk: the same loss as with the teacher beside, resumable, and refused where they are others'."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distilled import ASKED, ROWS, WRITTEN, batch_of, pair, writer
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

import tunekit
from tunekit.errors import TunekitError
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.objectives import _cached_rows, _pair, _taught
from tunekit.objectives._cached_loss import cached_sum
from tunekit.objectives._divergence import divergence
from tunekit.objectives._vocabulary import sum_in_pieces
from tunekit.objectives.distillation import Distillation
from tunekit.task import Task


# ---------------------------------------------------------------- the numbers
@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl", "jsd"])
def test_the_top_and_the_rest_give_the_divergence_of_a_float64_reference(kind: Any) -> None:
    torch.manual_seed(0)
    s, t, k, heat = torch.randn(6, 40) * 3, torch.randn(6, 40) * 3, 5, 2.0
    ids, logs, tail = _taught._top(t, k, heat)
    got = _taught.top_divergence(s, ids, logs, tail, kind, heat, 0.3)
    for i in range(6):
        p, q = (np.exp(x[i].double().numpy() / heat) for x in (t, s))
        p, q = p / p.sum(), q / q.sum()
        top = np.argsort(-p)[:k]
        p, q = (np.append(x[top], x.sum() - x[top].sum()) for x in (p, q))
        m = 0.3 * p + 0.7 * q
        kl = {
            "forward-kl": (p * np.log(p / q)).sum(), "reverse-kl": (q * np.log(q / p)).sum(),
            "jsd": 0.3 * (p * np.log(p / m)).sum() + 0.7 * (q * np.log(q / m)).sum(),
        }[kind]  # fmt: skip
        assert got[i].item() == pytest.approx(heat**2 * kl, rel=1e-5, abs=1e-5)


def test_the_whole_vocabulary_in_the_cache_is_the_teacher_itself() -> None:
    s, t = torch.randn(4, 12, dtype=torch.float64), torch.randn(4, 12)
    ids, logs, tail = _taught._top(t, 12, 1.5)
    got = _taught.top_divergence(s, ids, logs, tail, "forward-kl", 1.5, 0.5)
    assert torch.allclose(got, divergence(s, t.double(), "forward-kl", 1.5), atol=1e-6)


@pytest.mark.parametrize("vocabulary", [40, 37])
@pytest.mark.parametrize("hard", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("heat", [1.0, 2.0])
@pytest.mark.parametrize("sure", [3.0, 400.0])
def test_the_gradient_by_hand_is_that_of_the_loss_written_out(
    heat: float, hard: float, vocabulary: int, sure: float
) -> None:
    torch.manual_seed(0)
    s, t = torch.randn(7, 40, dtype=torch.float64) * sure, torch.randn(7, vocabulary) * 3
    ids, logs, tail = _taught._top(t, 5, heat)
    logs, targets = logs.half(), torch.tensor([3, 39, -100, int(ids[3, 0]), 0, 1, 2])
    found = []
    for fused in (True, False):
        logits = s.clone().requires_grad_()
        if fused:
            rows = (logits, ids, logs, tail, targets)
            total = sum_in_pieces(lambda *r: cached_sum(*r, vocabulary, heat, hard), rows, 3)
        else:
            soft = _taught.top_divergence(logits[:, :vocabulary], ids, logs, tail, "forward-kl", heat, 0.5)
            nll = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
            total = (1 - hard) * soft[targets != -100].sum() + hard * nll
        (gradient,) = torch.autograd.grad(2 * total, logits)
        found.append((total.detach(), gradient))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-10)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-8, atol=1e-10)
    assert found[0][1].abs().max() > 0.1
    assert (found[0][1][2] == 0).all()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("architecture", "task"),
    [("bert", "sequence-classification"), ("bert", "token-classification"), ("bert", "question-answering"), ("bert", "multiple-choice"),
     ("llama", "causal-lm"), ("t5", "seq2seq")],
)  # fmt: skip
def test_cached_answers_give_the_loss_of_a_teacher_beside(architecture: str, task: str, left: bool) -> None:
    student, teacher = pair(architecture, task)
    student.train(), teacher.eval()
    batch, seq2seq = batch_of(task), task == "seq2seq"
    if left and task in ("seq2seq", "multiple-choice"):
        left = False
    rows = [{k: v[i].tolist() for k, v in batch.items()} for i in range(len(batch["input_ids"]))]
    if task != "multiple-choice":
        rows = [{k: (v[: 5 + i] if isinstance(v, list) else v) for k, v in row.items()} for i, row in enumerate(rows)]
        rows = [{**row, "labels": row["labels"][: 5 + i] if isinstance(row["labels"], list) else row["labels"]} if "labels" in row else row for i, row in enumerate(rows)]  # fmt: skip

    def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        # Padding at the left moves the positions that BERT has learnt: all batches are of one width then.
        width = 8 if left else max(len(f["input_ids"]) for f in features)
        made = {}
        for name in features[0]:
            values = [f[name] for f in features]
            if isinstance(values[0], list) and task != "multiple-choice":
                fill = -100 if name == "labels" else 0
                values = [([fill] * (width - len(v)) + v) if left else v + [fill] * (width - len(v)) for v in values]
            made[name] = torch.tensor(values)
        for name in ("start_positions", "end_positions"):
            if name in made and left:
                made[name] = made[name] + torch.tensor([width - len(f["input_ids"]) for f in features])
        return made

    padded = collate(rows)
    objective = Distillation(temperature=2.0, hard_weight=0.3, positions_at_once=3, cache="unused")
    with torch.no_grad():
        online = Distillation(temperature=2.0, hard_weight=0.3).taught_by(teacher).loss(student, padded)[0].item()
        for i in (0, 2) if task != "multiple-choice" else (0,):  # answered two at a time, as in another batch
            part = collate(rows[i : i + 2])
            if task in ("causal-lm", "seq2seq"):
                columns = _taught.top_answers(teacher, part, 100, 100, 2.0, 3)
            else:
                lengths = [len(r["input_ids"]) for r in rows[i : i + 2]]
                columns = _taught.few_answers(teacher, Task.named(task), part, lengths)
            for j, row in enumerate(rows[i : i + 2]):
                row.update({name: values[j] for name, values in columns.items()})
        objective._held["cached"] = {"task": Task.named(task), "looks_ahead": not seq2seq, "k": 100}
        taught = objective.collate(rows, collate)
        assert {k: v.tolist() for k, v in padded.items()} == {k: taught[k].tolist() for k in padded}
        got = objective.loss(student, taught)[0].item()
        assert (
            objective.collate([dict(r) for r in rows], lambda f: objective.collate(f, collate)).keys() == taught.keys()
        )
        plain = Distillation(hard_weight=1.0, teacher="nobody").loss(student.eval(), padded)[0].item()
        assert objective.loss(student, padded)[0].item() == pytest.approx(plain, rel=1e-5)  # no answers: labels only
    # 16-bit log-probabilities over a vocabulary, whole logits elsewhere
    assert got == pytest.approx(online, rel=2e-3 if task in ("causal-lm", "seq2seq") else 1e-5)
    with pytest.raises(TunekitError) as caught:
        objective.loss(student.train(), padded)
    assert caught.value.codes == ("distillation-cache-rows",)


# ---------------------------------------------------------------- from plans
@pytest.fixture(scope="module")
def lm_teacher(tiny_decoder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return writer("causal-lm", tmp_path_factory.mktemp("lm-teacher"), tiny_decoder)


def lm_plan(student: str, teacher: str, folder: Path, cache: str | None = "answers", **values: Any) -> tunekit.Plan:
    settings = {"teacher": teacher, "top_k": 160, "cache": str(folder / cache) if cache else None, "hard_weight": 0.2}
    return tunekit.Plan(
        model=student, task="causal-lm", method=Full(), output_dir=str(folder / f"run-{cache}"), max_steps=8, learning_rate=3e-3,
        warmup=0.0, per_device_train_batch_size=4, objective=Distillation(**{**settings, **values.pop("objective", {})}), **values,
    )  # fmt: skip


def losses(plan: tunekit.Plan, rows: Any) -> list[float]:
    trainer = tunekit.trainer(plan, train_dataset=rows, disable_tqdm=True, logging_steps=1)
    trainer.train()
    return [e["loss"] for e in trainer.state.log_history if "loss" in e]


def test_training_from_the_cache_is_training_with_the_teacher_and_loads_none(
    tiny_decoder: str, lm_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = losses(lm_plan(tiny_decoder, lm_teacher, tmp_path, cache=None), ASKED)
    plan, said = lm_plan(tiny_decoder, lm_teacher, tmp_path), []
    tunekit.teach(plan, train_dataset=ASKED, say=said.append)
    assert "24 rows, top 160 log-probabilities" in said[0]
    monkeypatch.setattr(_pair, "read_teacher", lambda *a: pytest.fail("a teacher was loaded"))
    assert losses(plan, ASKED) == pytest.approx(online, rel=2e-3)
    assert online[-1] < 0.95 * online[0]


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_classifier_learns_from_the_cache_as_from_its_teacher(
    tiny_encoder: str, tmp_path: Path, accumulation: int
) -> None:
    from transformers import BertForSequenceClassification

    torch.manual_seed(3)
    names = {0: "no", 1: "yes"}
    BertForSequenceClassification.from_pretrained(tiny_encoder, id2label=names, label2id={"no": 0, "yes": 1}).save_pretrained(tmp_path / "teacher")  # fmt: skip
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "teacher")

    def made(cache: str | None) -> tunekit.Plan:
        return tunekit.Plan(
            model=tiny_encoder, task="sequence-classification", method=Lora(r=4), output_dir=str(tmp_path / f"run-{cache}"), max_steps=6,
            learning_rate=1e-2, per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation,
            objective=Distillation(teacher=str(tmp_path / "teacher"), cache=cache),
        )  # fmt: skip

    plan = made(str(tmp_path / "answers"))
    tunekit.teach(plan, train_dataset=ROWS, say=lambda text: None)
    assert losses(plan, ROWS) == pytest.approx(losses(made(None), ROWS), rel=1e-4)


def encoded(plan: tunekit.Plan, rows: Any) -> Any:
    from tunekit.material import gather

    return gather(plan, rows).train


def test_a_broken_off_teacher_goes_on_where_it_stopped(
    tiny_decoder: str, lm_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunekit.objectives._cache.PART_BYTES", 20_000)
    plan, whole = lm_plan(tiny_decoder, lm_teacher, tmp_path), lm_plan(tiny_decoder, lm_teacher, tmp_path, "whole")

    def stop(done: int, of: int) -> None:
        if done > of // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tunekit.teach(plan, train_dataset=ASKED, say=lambda text: None, progress=stop)
    folder = tmp_path / "answers"
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("part-*.arrow")}
    model = LlamaForCausalLM.from_pretrained(tiny_decoder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    with pytest.raises(TunekitError) as caught:
        plan.objective.rows(encoded(plan, ASKED), model, tokenizer)
    assert caught.value.codes == ("distillation-cache-unfinished",)
    tunekit.teach(plan, train_dataset=ASKED, say=lambda text: None)
    tunekit.teach(whole, train_dataset=ASKED, say=lambda text: None)
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("part-*.arrow")}
    assert 1 < len(before) < len(after)
    assert {name: after[name] for name in before} == before
    for name in after:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(plan.objective.rows(encoded(plan, ASKED), model, tokenizer)) == len(ASKED)


def test_the_size_that_is_said_is_what_it_takes(tiny_decoder: str, lm_teacher: str, tmp_path: Path) -> None:
    rows = [{"text": " ".join(f"number {j % 90}" for j in range(i % 20 + 5))} for i in range(300)]
    plan = lm_plan(tiny_decoder, lm_teacher, tmp_path, objective={"top_k": 32})
    size = tunekit.teach(plan, train_dataset=rows, say=lambda text: None, only_size=True)
    assert not (tmp_path / "answers").exists()
    tunekit.teach(plan, train_dataset=rows, say=lambda text: None)
    assert sum(p.stat().st_size for p in (tmp_path / "answers").iterdir()) == pytest.approx(size, rel=0.02)


def test_a_cache_of_something_else_is_refused_each_in_one_error(
    tiny_decoder: str, lm_teacher: str, tmp_path: Path
) -> None:
    teacher = str(shutil.copytree(lm_teacher, tmp_path / "teacher"))
    plan = lm_plan(tiny_decoder, teacher, tmp_path)
    model, tokenizer = LlamaForCausalLM.from_pretrained(tiny_decoder), AutoTokenizer.from_pretrained(tiny_decoder)
    rows = encoded(plan, ASKED)

    def refused(
        objective: dict[str, Any] | None = None, rows: Any = rows, tokenizer: Any = tokenizer
    ) -> tuple[str, str]:
        made = lm_plan(tiny_decoder, teacher, tmp_path, objective=objective or {}).objective
        with pytest.raises(TunekitError) as caught:
            made.rows(rows, model, tokenizer)
        return caught.value.codes[0], str(caught.value)

    assert refused()[0] == "distillation-cache-missing"
    tunekit.teach(plan, train_dataset=ASKED, say=lambda text: None)
    assert len(plan.objective.rows(rows, model, tokenizer)) == len(rows)
    other = AutoTokenizer.from_pretrained(tiny_decoder)
    other.add_tokens(["utterly-new"])
    for said, change in {
        "other rows": {"rows": rows.select(range(1, len(rows)))},
        "or in another order": {"rows": rows.select(reversed(range(len(rows))))},
        "another `temperature`": {"objective": {"temperature": 3.0}},
        "another `top_k`": {"objective": {"top_k": 8}},
        "another tokenizer": {"tokenizer": other},
        "another dtype": {"objective": {"teacher_dtype": "bfloat16"}},
        "texts": {"objective": {"targets": "teacher"}},
    }.items():
        code, text = refused(**change)
        assert code == "distillation-cache-stale", said
        assert said in text or said == "texts"
    changed = LlamaForCausalLM.from_pretrained(teacher)
    with torch.no_grad():
        changed.model.norm.weight[3] += 0.5
    changed.save_pretrained(teacher)
    code, text = refused()
    assert code == "distillation-cache-stale"
    assert "another teacher" in text
    with pytest.raises(TunekitError) as caught:
        tunekit.teach(plan, train_dataset=ASKED, say=lambda text: None)
    assert caught.value.codes == ("distillation-cache-stale",)
    tunekit.teach(plan, train_dataset=ASKED, say=lambda text: None, overwrite=True)
    assert len(plan.objective.rows(rows, model, tokenizer)) == len(rows)


def test_settings_that_exclude_each_other_and_plans_without_a_cache_are_refused(tiny_decoder: str) -> None:
    for code, settings in {
        "distillation-cache-states": {"cache": "x", "hidden_weight": 1.0},
        "distillation-targets-cache": {"targets": "teacher"},
    }.items():
        with pytest.raises(TunekitError) as caught:
            Distillation(teacher=tiny_decoder, **settings)
        assert caught.value.codes == (code,)
    plan = tunekit.Plan(
        model=tiny_decoder, task="causal-lm", method=Full(), objective=Distillation(teacher=tiny_decoder)
    )
    with pytest.raises(TunekitError) as caught:
        tunekit.teach(plan, train_dataset=ASKED)
    assert caught.value.codes == ("teach-nothing",)


# ---------------------------------------------------------------- what a teacher writes
@pytest.mark.parametrize("task", ["causal-lm", pytest.param("seq2seq", marks=pytest.mark.slow)])
def test_a_student_learns_the_texts_that_its_teacher_writes(
    task: str, tiny_decoder: str, tiny_seq2seq: str, tmp_path: Path
) -> None:
    student, rows = (tiny_decoder, ASKED) if task == "causal-lm" else (tiny_seq2seq, WRITTEN)
    teacher = writer(task, tmp_path / "teacher", student)
    plan = tunekit.Plan(
        model=student, task=task, method=Full(), output_dir=str(tmp_path / "run"), max_steps=30, learning_rate=1e-2, warmup=0.0,
        objective=Distillation(teacher=teacher, targets="teacher", cache=str(tmp_path / "texts"), target_tokens=6, hard_weight=1.0),
    )  # fmt: skip
    tunekit.teach(plan, train_dataset=rows, say=lambda text: None)
    trainer = tunekit.trainer(plan, train_dataset=rows, disable_tqdm=True, logging_steps=10)
    model: Any = (LlamaForCausalLM if task == "causal-lm" else __import__("transformers").T5ForConditionalGeneration).from_pretrained(teacher)  # fmt: skip
    own, padded = encoded(plan, rows), list(range(len(AutoTokenizer.from_pretrained(student)), 176))
    for i in (0, 5):
        row, taught = own[i], trainer.train_dataset[i]
        prompt = [t for t, y in zip(row["input_ids"], row["labels"], strict=False) if y == -100] if task == "causal-lm" else row["input_ids"]  # fmt: skip
        made = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6, suppress_tokens=padded, attention_mask=torch.ones(1, len(prompt), dtype=torch.long))[0].tolist()  # fmt: skip
        answer = made[len(prompt) :] if task == "causal-lm" else made[1:]
        assert [t for t in taught["labels"] if t != -100] == answer
        assert taught["input_ids"] == (prompt + answer if task == "causal-lm" else prompt)
    trainer.train()
    logged = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert logged[-1] < 0.8 * logged[0]


def test_plain_text_has_no_question_for_a_teacher(tiny_decoder: str, lm_teacher: str, tmp_path: Path) -> None:
    plan = lm_plan(tiny_decoder, lm_teacher, tmp_path, objective={"targets": "teacher"})
    with pytest.raises(TunekitError) as caught:
        tunekit.teach(plan, train_dataset=[{"text": "good number 3"}] * 4, say=lambda text: None)
    assert caught.value.codes == ("distillation-no-prompt",)


def test_the_student_of_a_cache_must_have_its_classes_and_words(tiny_decoder: str, lm_teacher: str, tmp_path: Path) -> None:  # fmt: skip
    plan = lm_plan(tiny_decoder, lm_teacher, tmp_path)
    tunekit.teach(plan, train_dataset=ASKED, say=lambda text: None)
    small = AutoConfig.from_pretrained(tiny_decoder)
    small.vocab_size = 150
    with pytest.raises(TunekitError) as caught:
        plan.objective.rows(encoded(plan, ASKED), LlamaForCausalLM(small), AutoTokenizer.from_pretrained(tiny_decoder))
    assert caught.value.codes == ("distillation-vocabulary",)
    assert _cached_rows.content_of(plan.objective, Task.named("causal-lm")) == "top-k"
