"""Prompt learning: scores are those of an independent reference, texts are cut and nothing else, and a Trainer learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForMaskedLM, AutoTokenizer

import tunekit
from tunekit.data.collate import collator
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.methods.prompt_tuning import PromptTuning
from tunekit.objectives.prompt_learning import PromptLearning
from tunekit.plan import DataSpec, Plan
from tunekit.task import Task

TASK = Task.named("sequence-classification")
ROWS = [{"text": f"the {['red', 'blue'][i % 2]} sun {i % 50}", "label": ["no", "yes"][i % 2]} for i in range(32)]
ONE_TOKEN = {"no": ("bad", "poor"), "yes": ("good",)}
SPLIT = {"no": ("bad",), "yes": ("good fine", "great")}
TEMPLATES = {
    "encoder": ("{text} it was {mask} .".replace(" it", " saw"), "a {mask} moon : {text}"),
    "decoder": ("{text} was {mask}", "question : {text} answer : {mask}".replace("question :", "what :")),
    "seq2seq": ("{text} was {mask}", "what : {text} answer {mask}"),
}
SIDES = tuple(TEMPLATES)


def prompt(side: str = "encoder", verbalizer: Any = None, **settings: Any) -> PromptLearning:
    return PromptLearning(**{"templates": TEMPLATES[side], "verbalizer": verbalizer or ONE_TOKEN, **settings})


@pytest.fixture
def folder_of(tiny_masked: str, tiny_decoder: str, tiny_seq2seq: str) -> Callable[[str], str]:
    return {"encoder": tiny_masked, "decoder": tiny_decoder, "seq2seq": tiny_seq2seq}.__getitem__


def load(folder: str, side: str) -> tuple[Any, Any]:
    import transformers

    form = prompt(side).learnt_as(TASK, side)  # type: ignore[arg-type]
    return getattr(transformers, form.auto_class).from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def encoded(objective: PromptLearning, tokenizer: Any, side: str, rows: Any = ROWS, **settings: Any) -> Any:
    names = settings.pop("label_names", ("no", "yes"))
    columns = {"text": "text", "label": "label"}
    return objective.encode(Dataset.from_list(rows), TASK, tokenizer, side=side, columns=columns, label_names=names, problem_type="single_label_classification", **settings)  # type: ignore[arg-type]  # fmt: skip


def batch_of(objective: PromptLearning, tokenizer: Any, side: str, rows: Any = ROWS[:5], **settings: Any) -> Any:
    made = encoded(objective, tokenizer, side, rows, **settings).dataset
    return objective.collate([made[i] for i in range(len(made))], collator(TASK, tokenizer))


# ---------------------------------------------------------------- the reference: one row, one template, one word at a time
def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def said_of(model: Any, tokenizer: Any, side: str, template: str, text: str, word: str, masks: int) -> float:
    """The mean log-probability of a word's tokens in the blank."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        if side == "encoder":
            whole = template.replace("{text}", text).replace("{mask}", " ".join(["[MASK]"] * masks))
            read = tokenizer(whole, return_tensors="pt")
            logits = model(**read).logits[0].numpy()
            places = [i for i, t in enumerate(read["input_ids"][0].tolist()) if t == tokenizer.mask_token_id]
            return float(np.mean([log_softmax(logits[p])[t] for p, t in zip(places, ids, strict=False)]))
        before = tokenizer(template.replace("{text}", text).replace("{mask}", "").strip())["input_ids"]
        if side == "decoder":
            logits = model(input_ids=torch.tensor([[*before, *ids]])).logits[0].numpy()
            return float(np.mean([log_softmax(logits[len(before) - 1 + j])[t] for j, t in enumerate(ids)]))
        start = [model.config.decoder_start_token_id, *ids][:-1]
        logits = model(input_ids=torch.tensor([before]), decoder_input_ids=torch.tensor([start])).logits[0].numpy()
        return float(np.mean([log_softmax(logits[j])[t] for j, t in enumerate(ids)]))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("verbalizer", [ONE_TOKEN, SPLIT], ids=["one token", "split"])
def test_scores_are_those_of_an_independent_reference(side: str, verbalizer: Any, folder_of: Any) -> None:
    model, tokenizer = load(folder_of(side), side)
    objective, masks = prompt(side, verbalizer), 2 if verbalizer is SPLIT else 1
    rows = [*ROWS[:4], {"text": "the sun went up and down and left and right", "label": "no"}]
    want, losses = [], []
    for row in rows:
        each = []
        for template in objective.templates:
            said = [
                np.mean([said_of(model, tokenizer, side, template, row["text"], w, masks) for w in words])
                for words in verbalizer.values()
            ]
            each.append(log_softmax(np.array(said)))
        want.append(np.mean(each, 0))
        losses.append(-np.mean([e[["no", "yes"].index(row["label"])] for e in each]))
    batch = batch_of(objective, tokenizer, side, rows)
    for mode in (model.train(), model.eval()):  # no dropout
        loss, outputs = objective.loss(mode, batch)
        assert outputs["logits"].detach().numpy() == pytest.approx(np.array(want), abs=1e-5)
        assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    shares = [objective.loss(model, {k: v[s] for k, v in batch.items()}, 5)[0] for s in (slice(0, 2), slice(2, 5))]
    assert sum(shares).item() == pytest.approx(np.mean(losses), rel=1e-5)  # type: ignore[union-attr]
    scores = tunekit.prompt_scores(model, tokenizer, objective, rows, batch_size=2)
    assert scores.numpy() == pytest.approx(np.array(want), abs=1e-5)


def test_a_gap_within_the_text_is_a_sentinel_of_t5(tiny_seq2seq: str) -> None:
    model, tokenizer = load(tiny_seq2seq, "seq2seq")
    objective = PromptLearning(templates=("{text} was {mask} .",), verbalizer=ONE_TOKEN)
    with pytest.raises(InvalidError, match="prompt-mask-not-last"):
        encoded(objective, tokenizer, "seq2seq")
    tokenizer.add_tokens(["<extra_id_0>"], special_tokens=True)
    gap = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    batch = batch_of(objective, tokenizer, "seq2seq", ROWS[:1])
    assert batch["answers"].tolist()[0][0][0] == gap
    assert gap in batch["input_ids"][0].tolist()
    with torch.no_grad():
        logits = model(
            input_ids=batch["input_ids"],
            decoder_input_ids=torch.tensor([[0, gap]]),
        ).logits[0, 1]
        want = logits.log_softmax(-1)[tokenizer.convert_tokens_to_ids(["bad", "poor", "good"])]
        got = objective.answer(model, batch)["logits"][0]
    assert torch.allclose(got, torch.stack([want[:2].mean(), want[2]]).log_softmax(-1), atol=1e-5)


def test_padding_on_the_left_changes_nothing(tiny_masked: str) -> None:
    model, tokenizer = load(tiny_masked, "encoder")
    rows = [*ROWS[:2], {"text": "the sun went up and down and left and right", "label": "no"}]
    right = batch_of(prompt(), tokenizer, "encoder", rows)
    tokenizer.padding_side = "left"
    left = batch_of(prompt(), tokenizer, "encoder", rows)
    for batch in (left, right):
        ids = batch["input_ids"].gather(2, batch["positions"])
        assert (ids == tokenizer.mask_token_id).all()
    positions = left["attention_mask"].cumsum(-1) - 1
    with torch.no_grad():  # BERT counts positions from the first token, padding or not: give it the same ones
        want = model(input_ids=right["input_ids"][2], attention_mask=right["attention_mask"][2]).logits
        got = model(input_ids=left["input_ids"][2], attention_mask=left["attention_mask"][2], position_ids=positions[2].clamp(min=0)).logits  # fmt: skip
    assert torch.allclose(want[:, 1], got[:, 1], atol=1e-5)


# ---------------------------------------------------------------- texts
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("demonstrations", [0, 1])
def test_a_long_text_is_cut_and_the_template_never(side: str, demonstrations: int, folder_of: Any) -> None:
    _, tokenizer = load(folder_of(side), side)
    long = [{"text": " ".join(["sun moon red blue"] * 20), "label": y} for y in ("no", "yes")] + [ROWS[0], ROWS[3]]
    objective = prompt(side, demonstrations=demonstrations)
    made = encoded(objective, tokenizer, side, long, examples=Dataset.from_list(ROWS), max_length=40)
    assert "rows-truncated" in [f.code for f in made.findings]
    for row in made.dataset:
        for ids, template in zip(row["input_ids"], TEMPLATES[side], strict=True):
            assert len(ids) <= 40
            tokens = tokenizer.convert_ids_to_tokens(ids)
            own = [w for w in template.replace("{text}", "").replace("{mask}", "").split() if w not in ("it",)]
            assert all(tokens.count(w) >= 1 + 2 * demonstrations for w in own), (own, tokens)
            if side == "encoder":
                assert tokens.count("[MASK]") == 1
    assert len(made.dataset[0]["input_ids"][0]) > 30
    with pytest.raises(InvalidError, match="prompt-too-long"):
        encoded(objective, tokenizer, side, long, examples=Dataset.from_list(ROWS), max_length=1)


def test_demonstrations_are_other_rows_of_every_class_and_the_same_in_every_run(tiny_masked: str) -> None:
    _, tokenizer = load(tiny_masked, "encoder")
    rows = [{"text": f"the sun {i}", "label": ["no", "yes"][i % 2]} for i in range(20)]
    objective = prompt(
        templates=("{text} was {mask}",), demonstrations=2, verbalizer={"no": ("bad",), "yes": ("good",)}
    )
    once, again = (
        encoded(objective, tokenizer, "encoder", rows, examples=Dataset.from_list(rows)).dataset for _ in range(2)
    )
    assert once["input_ids"] == again["input_ids"]
    texts = [tokenizer.decode(row["input_ids"][0]) for row in once]
    for i, text in enumerate(texts):
        assert text.count("bad") == text.count("good") == 2
        assert text.split().count(str(i)) == 1
    assert len({text.split("[MASK]")[0][:30] for text in texts}) > 5


def test_a_mask_written_in_a_text_is_not_the_blank(tiny_masked: str) -> None:
    _, tokenizer = load(tiny_masked, "encoder")
    row = {"text": "the [MASK] sun", "label": "no"}
    batch = batch_of(prompt(templates=("{text} was {mask}",)), tokenizer, "encoder", [row])
    assert batch["positions"].tolist() == [[[5]]]


def test_soft_tokens_are_spare_ones_and_learn_under_full_fine_tuning_only(tiny_masked: str, tmp_path: Path) -> None:
    _, tokenizer = load(tiny_masked, "encoder")
    soft = prompt(templates=("{text} {soft:2} {mask}", "{soft} {text} {mask}"))
    with pytest.raises(InvalidError, match="prompt-soft-vocabulary"):
        encoded(soft, tokenizer, "encoder")
    folder = tmp_path / "spare"
    tokenizer.add_tokens(["[unused1]", "[unused2]", "[unused3]"])
    spare = tokenizer.convert_tokens_to_ids(["[unused1]", "[unused2]", "[unused3]"])
    model = AutoModelForMaskedLM.from_pretrained(tiny_masked)
    assert max(spare) < model.config.vocab_size
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = encoded(soft, tokenizer, "encoder").dataset
    assert [[t for t in ids if t in spare] for ids in rows[0]["input_ids"]] == [spare[:2], spare[2:]]
    plan = a_plan(str(folder), soft, tmp_path / "run", max_steps=2)
    trainer = tunekit.trainer(plan, train_dataset=ROWS, disable_tqdm=True)
    before = trainer.model.get_input_embeddings().weight[spare].clone()
    trainer.train()
    assert (trainer.model.get_input_embeddings().weight[spare] != before).any(1).all()
    with pytest.raises(UnsupportedError, match="prompt-soft-frozen"):
        tunekit.trainer(plan.replace(method=Lora(r=2)), train_dataset=ROWS, overwrite=True)


# ---------------------------------------------------------------- training
def a_plan(model: str, objective: PromptLearning, output: Path, **changes: Any) -> Plan:
    values = {
        "learning_rate": 2e-3,
        "max_steps": 60,
        "method": Full(),
        "warmup": 0.0,
        "output_dir": str(output),
        **changes,
    }
    return Plan(model=model, task="sequence-classification", objective=objective, **values)


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


# ---------------------------------------------------------------- faults
def test_everything_wrong_with_templates_and_words_is_said_at_once() -> None:
    with pytest.raises(InvalidError) as caught:
        PromptLearning(
            templates=("{text} it was", "{mask} and {mask}", "{text:>3} {mask}", "{text {mask}"),
            verbalizer={"a": (), "b": ("good",)}, demonstrations=-1,
        )  # fmt: skip
    assert set(caught.value.codes) == {
        "prompt-mask-missing", "prompt-mask-several", "prompt-field-missing", "prompt-template-format", "prompt-verbalizer-empty",
        "prompt-range",
    }  # fmt: skip
    with pytest.raises(InvalidError, match="prompt-verbalizer-empty"):
        prompt(verbalizer={"only": ("one",)})
    with pytest.raises(InvalidError, match="prompt-prior"):
        prompt(prior={"no": (0.1,)})


def test_everything_wrong_with_the_data_is_said_at_once(tiny_masked: str) -> None:
    _, tokenizer = load(tiny_masked, "encoder")
    tokenizer.mask_token = None
    objective = PromptLearning(templates=("{text} {words} {label} {mask}",), verbalizer={"no": ("bad",), "maybe": ("poor",)})  # fmt: skip
    with pytest.raises(InvalidError) as caught:
        encoded(objective, tokenizer, "encoder")
    assert set(caught.value.codes) == {
        "prompt-mask-token",
        "prompt-labels",
        "prompt-field-unknown",
        "prompt-field-label",
    }


def test_words_that_are_unknown_split_or_the_same_are_reported(tiny_masked: str) -> None:
    _, tokenizer = load(tiny_masked, "encoder")
    with pytest.raises(InvalidError) as caught:
        encoded(prompt(verbalizer={"no": ("bad", "xyzzy"), "yes": ("bad",)}), tokenizer, "encoder")
    assert set(caught.value.codes) == {"prompt-word-unknown", "prompt-words-equal"}
    found = encoded(prompt(verbalizer=SPLIT), tokenizer, "encoder").findings
    assert [f.code for f in found] == ["prompt-word-split"]
    assert "'good fine' is 2 tokens" in found[0].seen


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"task": "token-classification"}, "prompt-task"),
        ({"templates": ("{text} {mask} .",)}, "prompt-mask-not-last"),
        ({"masked_lm_weight": 0.1}, "prompt-auxiliary"),
    ],
)
def test_what_a_decoder_cannot_do_is_refused_before_it_is_loaded(changes: Any, code: str, tiny_decoder: str) -> None:
    task = changes.pop("task", "sequence-classification")
    plan = Plan(model=tiny_decoder, task=task, method=Full(), objective=prompt("decoder", **changes))
    with pytest.raises(UnsupportedError, match=code):
        tunekit.trainer(plan, train_dataset=ROWS)


def test_an_encoder_saved_without_its_head_is_refused(tiny_encoder: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="model-head-missing"):
        tunekit.trainer(a_plan(tiny_encoder, prompt(), tmp_path / "run"), train_dataset=ROWS)


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
