"""The demonstration: its rows, its baseline, its fresh process, and all of it together."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import tunekit
from tunekit.demo import naive_bayes, rows
from tunekit.demo.classify import classify


def test_every_split_has_every_intent_and_no_row_of_another_split() -> None:
    splits = {name: rows.read(name) for name in ("train", "validation", "test")}
    counts = {name: Counter(labels) for name, (_, labels) in splits.items()}
    assert set(counts["train"].values()) == {10}
    assert set(counts["validation"].values()) == {3}
    assert set(counts["test"].values()) == {32, 33}
    assert set(counts["train"]) == set(counts["validation"]) == set(counts["test"])
    texts = [{" ".join(t.lower().split()) for t in texts} for texts, _ in splits.values()]
    assert [len(t) for t in texts] == [770, 231, 2540]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    assert not {s.lower() for s in rows.SENTENCES} & set().union(*texts)


def test_the_rows_come_with_their_licence() -> None:
    text = (rows.folder() / "ATTRIBUTION.md").read_text("utf-8")
    assert "CC BY 4.0" in text
    assert "Casanueva" in text


def test_the_baseline_is_what_scikit_learn_computes() -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    (texts, labels), (asked, right) = rows.read("train"), rows.read("test")
    counter = CountVectorizer(ngram_range=(1, 2))
    theirs = MultinomialNB(alpha=0.3).fit(counter.fit_transform(texts), labels).predict(counter.transform(asked))
    baseline = naive_bayes.fit(texts, labels, smoothing=0.3)
    ours = [baseline.predict(t) for t in asked]
    assert set(baseline.likelihood) == set(counter.vocabulary_)
    assert ours == theirs.tolist()
    assert naive_bayes.accuracy(ours, right) == pytest.approx((theirs == right).mean())


def test_answers_come_in_the_order_of_the_questions_whatever_their_length(tiny_encoder: str, tmp_path: Path) -> None:
    data = [{"text": f"the {'good' if i % 2 else 'bad'} sun " * (1 + i % 5), "label": "yn"[i % 2]} for i in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, data)))
    plan = tunekit.Plan(
        model=tiny_encoder, task="sequence-classification", method=tunekit.methods.Lora(r=4), learning_rate=1e-2,
        max_steps=20, data=tunekit.DataSpec(path=str(path), label_names=("n", "y")), output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    trainer = tunekit.trainer(plan, disable_tqdm=True)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    texts = [row["text"] for row in data]
    together = classify(plan, tmp_path / "adapter", texts)
    alone = [classify(plan, tmp_path / "adapter", [t])[0] for t in texts[:4]]
    assert [a["predicted"] for a in together] == [row["label"] for row in data]
    for one, other in zip(together[:4], alone, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=2e-3)


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "tunekit", "demo", "--output", str(folder / "out")]
    return folder / "out", subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demonstration_beats_its_baseline_and_leaves_what_it_promises(demonstrated: Any) -> None:
    folder, done = demonstrated
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads((folder / "report.json").read_text("utf-8"))
    ours, theirs = report["run"]["scores"]
    assert ours["value"] >= theirs["value"] + 0.03
    assert len(report["advice"]["ranked"]) >= 2
    assert {"report.html", "report.json", "plan.yaml", "adapter"} <= {p.name for p in folder.iterdir()}
    assert f"{ours['value']:.3f}" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demonstration_sets_prediction_beside_measurement(demonstrated: Any) -> None:
    folder, done = demonstrated
    run = json.loads((folder / "report.json").read_text("utf-8"))["run"]
    measured, predicted = run["measured"]["memory"]["device_bytes"], run["predicted"]["memory"]
    assert measured < 3 * 2**30
    low, high = predicted["interval"]
    assert low <= measured <= high
    assert "predicted" in done.stdout
    assert [s["predicted"] for s in run["samples"]][1] in ("pin_blocked", "change_pin", "passcode_forgotten")
