"""Prompt learning in a Trainer: every side learns, reports and reloads, by any method, on any base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prompted import ROWS, SIDES, SPLIT, TEMPLATES, a_plan, batch_of, load, prompt

import tunekit
from tunekit.errors import UnsupportedError
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.methods.prompt_tuning import PromptTuning
from tunekit.plan import DataSpec, Plan

# ---------------------------------------------------------------- training
METHODS = {"full": Full(), "lora": Lora(r=4), "prompt-tuning": PromptTuning(num_virtual_tokens=4)}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_every_side_learns_reports_accuracy_and_reloads(method: str, side: str, folder_of: Any, tmp_path: Path) -> None:
    objective = prompt(side, masked_lm_weight=0.1 if side == "encoder" and method == "full" else 0.0)
    plan = a_plan(folder_of(side), objective, tmp_path / "run", method=METHODS[method])
    plan = plan.replace(
        **{
            "lora": {"learning_rate": 1e-2, "warmup": 0.1} if side == "encoder" else {"learning_rate": 2e-2},
            "prompt-tuning": {"max_steps": 2},
        }.get(method, {})
    )
    trainer = tunekit.trainer(plan, train_dataset=ROWS, eval_dataset=ROWS[:8], logging_steps=4, disable_tqdm=True)
    trainer.train()
    after = trainer.evaluate()
    if method != "prompt-tuning":
        losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
        assert losses[-1] < 0.85 * losses[0], losses
        assert after["eval_accuracy"] == 1.0
    trainer.save_model(str(tmp_path / "saved"))
    plan.save(tmp_path / "saved" / "plan.yaml")
    model, tokenizer = load(folder_of(side), side)
    again = Plan.load(tmp_path / "saved" / "plan.yaml").objective
    assert again == objective
    if method == "full":
        model = type(model).from_pretrained(tmp_path / "saved")
    else:
        model = tunekit.load(model, tmp_path / "saved")
    want, got = (tunekit.prompt_scores(m, tokenizer, again, ROWS[:8]).numpy() for m in (trainer.model, model))  # type: ignore[arg-type]
    assert got == pytest.approx(want, abs=1e-5)
    # The host's sampler puts rows of like length together, also those that are only asked about.
    said = trainer.predict(trainer.eval_dataset.remove_columns("labels")).predictions
    assert np.sort(said, 0) == pytest.approx(np.sort(want, 0), abs=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_accumulation_and_an_uneven_last_step_give_the_weights_of_whole_batches(
    side: str, folder_of: Any, tmp_path: Path
) -> None:
    learnt = []
    for batch, accumulation in ((8, 1), (2, 4)):
        plan = a_plan(folder_of(side), prompt(side, SPLIT), tmp_path / f"{batch}", max_steps=None, num_train_epochs=1.0, learning_rate=1e-2)  # fmt: skip
        plan = plan.replace(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, optim="sgd")
        trainer = tunekit.trainer(plan, train_dataset=ROWS[:19], disable_tqdm=True, logging_steps=1)
        trainer.train()
        learnt.append((trainer.state.log_history, list(trainer.model.parameters())))
    for a, b in zip(learnt[0][0][:3], learnt[1][0][:3], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(learnt[0][1], learnt[1][1], strict=True))


def test_the_auxiliary_loss_is_the_masked_lm_loss_of_hidden_words(tiny_masked: str) -> None:
    model, tokenizer = load(tiny_masked, "encoder")
    objective = prompt(masked_lm_weight=0.3)
    batch = batch_of(objective, tokenizer, "encoder")
    plain, _ = prompt().loss(model, batch)
    mixed, _ = objective.loss(model.train(), batch)
    flat = batch["hidden_ids"].reshape(-1, batch["hidden_ids"].shape[-1])
    with torch.no_grad():
        logits = model(input_ids=flat, attention_mask=batch["attention_mask"].reshape(flat.shape)).logits
    shown = batch["input_ids"].reshape(flat.shape)
    losses = []
    for i in range(len(flat)):
        where = (flat[i] != shown[i]).nonzero()[:, 0]
        assert 1 <= len(where) <= 3
        assert (flat[i, where] == tokenizer.mask_token_id).all()
        losses.append(torch.nn.functional.cross_entropy(logits[i, where], shown[i, where]))
    want = 0.7 * plain + 0.3 * torch.stack(losses).mean()
    assert mixed.item() == pytest.approx(want.item(), rel=1e-5)
    assert objective.loss(model.eval(), batch)[0].item() == pytest.approx(plain.item(), rel=1e-6)


def test_soft_labels_are_learnt_as_shares(tiny_masked: str) -> None:
    model, tokenizer = load(tiny_masked, "encoder")
    batch = batch_of(prompt(templates=("{text} was {mask}",)), tokenizer, "encoder")
    objective = prompt(templates=("{text} was {mask}",))
    shares = torch.tensor([[0.25, 0.75]] * 5)
    scores = objective.answer(model, batch)["logits"]
    got, _ = objective.loss(model, {**batch, "labels": shares})
    assert got.item() == pytest.approx(-(shares * scores).sum(1).mean().item(), rel=1e-5)
    assert int(objective.num_items({"labels": shares})) == 5  # type: ignore[arg-type]


def test_calibration_takes_off_what_is_said_of_nothing(tiny_masked: str) -> None:
    model, tokenizer = load(tiny_masked, "encoder")
    calibrated = tunekit.calibrate_prompt(model, tokenizer, prompt(), content_free=("the", "a"))
    said = tunekit.prompt_scores(model, tokenizer, calibrated, [{"text": "the"}, {"text": "a"}])
    assert said.exp().mean(0).numpy() == pytest.approx([0.5, 0.5], abs=0.05)
    plain = tunekit.prompt_scores(model, tokenizer, prompt(), [{"text": "the"}])
    assert (plain - said[:1]).abs().max() > 1e-3
    assert Plan.from_dict(a_plan("m", calibrated, Path("o")).to_dict()).objective == calibrated


def test_label_words_are_found_from_a_few_examples(tiny_masked: str, tmp_path: Path) -> None:
    """A model that was taught to say `alice` of red and `bob` of blue suns."""
    taught = prompt(verbalizer={"no": ("alice",), "yes": ("bob",)})
    trainer = tunekit.trainer(a_plan(tiny_masked, taught, tmp_path / "run"), train_dataset=ROWS, disable_tqdm=True)
    trainer.train()
    found = tunekit.search_label_words(
        trainer.model, trainer.processing_class, TEMPLATES["encoder"], ROWS[:16], words=2
    )
    assert found["no"][0] == "alice"
    assert found["yes"][0] == "bob"
    assert len({*found["no"], *found["yes"]}) == 4


def test_self_training_learns_from_rows_without_labels(tiny_masked: str, tmp_path: Path) -> None:
    labelled, more = ROWS[:4], [{"text": r["text"]} for r in ROWS[4:]]
    plan = a_plan(tiny_masked, prompt(), tmp_path / "run", max_steps=60)
    last = tunekit.self_train(plan, labelled, more, eval_dataset=ROWS, generations=2, growth=3.0, disable_tqdm=True)
    assert last.evaluate()["eval_accuracy"] == 1.0
    labels = np.array(last.train_dataset["labels"])
    assert labels.shape == (32, 2)
    assert labels[:4].tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert labels.sum(1) == pytest.approx(1.0)
    assert ((labels[4:] > 0.01) & (labels[4:] < 0.99)).any()
    with pytest.raises(UnsupportedError, match="self-train-objective"):
        tunekit.self_train(plan.replace(objective=None), labelled, more)


# ---------------------------------------------------------------- beside the Trainer
@pytest.mark.parametrize("side", SIDES)
def test_the_simulator_traces_this_loss(side: str, folder_of: Any) -> None:
    rows = {"max_length": 48, "per_device_train_batch_size": 4}
    one = tunekit.estimate_memory(
        a_plan(folder_of(side), prompt(side, templates=TEMPLATES[side][:1]), Path("o"), **rows), "24GB"
    )
    two = tunekit.estimate_memory(a_plan(folder_of(side), prompt(side), Path("o"), **rows), "24GB")
    assert not any("traced" in reason for reason in two.reasons), two.reasons
    assert two.parts["activations"] > 1.5 * one.parts["activations"]
    assert one.total_parameters == sum(p.numel() for p in load(folder_of(side), side)[0].parameters())


@pytest.mark.parametrize("side", SIDES)
def test_check_finds_nothing_wrong_with_a_sound_plan(side: str, folder_of: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps(r) + "\n" for r in ROWS[:24] + [{"text": f"moon {i}", "label": "no"} for i in range(40)])
    )
    plan = a_plan(folder_of(side), prompt(side), tmp_path / "run", data=DataSpec(path=str(file)), learning_rate=1e-4)
    assert [f.code for f in tunekit.check(plan) if f.severity == "error"] == []


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_a_base_of_four_bits_learns_through_lora(side: str, folder_of: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    # An encoder with its norms after the sums loses its way at the others' rate, quantised or not.
    rate = {"learning_rate": 1e-2, "warmup": 0.1} if side == "encoder" else {"learning_rate": 2e-2}
    plan = a_plan(folder_of(side), prompt(side), tmp_path / "run", method=Lora(r=4), **rate)
    trainer = tunekit.trainer(plan.replace(quantization="nf4"), train_dataset=ROWS, disable_tqdm=True, logging_steps=1)
    assert any(type(m).__name__ == "Linear4bit" for m in trainer.model.modules())
    trainer.train()
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert np.mean(losses[-4:]) < 0.9 * losses[0]
