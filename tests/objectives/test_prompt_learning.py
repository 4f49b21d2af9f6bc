"""Prompt learning: scores are those of an independent reference, and texts are cut and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from prompted import ONE_TOKEN, ROWS, SIDES, SPLIT, SPLIT_TWICE, TEMPLATES, a_plan, batch_of, encoded, load, prompt
from transformers import AutoModelForMaskedLM

import tunekit
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.methods.lora import Lora
from tunekit.objectives.prompt_learning import PromptLearning


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
@pytest.mark.parametrize("verbalizer", [ONE_TOKEN, SPLIT, SPLIT_TWICE], ids=["one token", "split", "split twice"])
def test_scores_are_those_of_an_independent_reference(side: str, verbalizer: Any, folder_of: Any) -> None:
    model, tokenizer = load(folder_of(side), side)
    objective, masks = prompt(side, verbalizer), 1 if verbalizer is ONE_TOKEN else 2
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


@pytest.mark.parametrize(("side", "each"), [("encoder", 1), ("decoder", 2), ("seq2seq", 2)])
def test_a_sequence_is_read_for_each_split_word_and_not_for_every_word(side: str, each: int, folder_of: Any) -> None:
    _, tokenizer = load(folder_of(side), side)
    for verbalizer, sequences in ((ONE_TOKEN, 1), (SPLIT, 1), (SPLIT_TWICE, each)):
        batch = batch_of(prompt(side, verbalizer), tokenizer, side)
        assert batch["input_ids"].shape[:2] == (5, len(TEMPLATES[side]) * sequences)


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
