"""What a run's record says of rows: trained tokens, answers, confusions; and nothing of them when that is not wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tunekit

ROWS: dict[str, list[dict[str, Any]]] = {
    "sequence-classification": [{"text": f"the {'good' if i % 2 else 'bad'} sun {i}", "label": ("bad", "good")[i % 2]} for i in range(12)],
    "token-classification": [{"tokens": ["alice", "saw", "rome", str(i)], "tags": ["B-per", "O", "B-loc", "O"]} for i in range(12)],
    "question-answering": [
        {"context": f"alice went to rome {i}", "question": "where ?", "answers": {"text": ["rome"], "answer_start": [14]}} for i in range(12)
    ],
    "causal-lm": [{"prompt": f"what is {i} ?", "completion": f" the answer is {i}"} for i in range(12)],
}  # fmt: skip


def record(model: str, task: str, folder: Path, **keywords: Any) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS[task])))
    plan = tunekit.Plan(
        model=model, task=task, method=tunekit.methods.Lora(r=2), data=tunekit.DataSpec(path=str(path), eval_share=0.34),
        output_dir=str(folder / "out"), max_steps=1,
    )  # fmt: skip
    made = tunekit.run(plan, disable_tqdm=True, **keywords)
    written = json.loads((folder / "out" / "record.json").read_text())
    assert written.get("samples") == made.get("samples"), "what is returned is what is on disk"
    assert "samples_missing" not in made
    return made


def test_classes_are_counted_by_what_they_were_taken_for(tiny_encoder: str, tmp_path: Path) -> None:
    made = record(tiny_encoder, "sequence-classification", tmp_path)
    counts = made["confusion"]["counts"]
    rows = made["data"]["eval_rows"]
    assert made["confusion"]["names"] == ["bad", "good"]
    assert sum(n for *_, n in counts) == rows
    right = sum(n for i, j, n in counts if i == j)
    assert right / rows == pytest.approx(made["final"]["eval_accuracy"])
    assert {s["expected"] for s in made["samples"]} <= {"bad", "good"}
    assert all("sun" in s["text"] for s in made["samples"])


def test_tags_stand_beside_their_words(tiny_encoder: str, tmp_path: Path) -> None:
    samples = record(tiny_encoder, "token-classification", tmp_path)["samples"]
    assert {s["expected"] for s in samples} == {"alice: B-per, rome: B-loc"}
    assert all(s["text"].startswith("alice saw rome") for s in samples)


def test_answers_are_cut_out_of_the_text(tiny_encoder: str, tmp_path: Path) -> None:
    samples = record(tiny_encoder, "question-answering", tmp_path)["samples"]
    assert {s["expected"] for s in samples} == {"rome"}
    assert all(s["predicted"] in s["text"] for s in samples)


def test_a_language_model_shows_what_it_writes_and_which_tokens_were_trained(tiny_decoder: str, tmp_path: Path) -> None:
    made = record(tiny_decoder, "causal-lm", tmp_path)
    assert all(s["text"].startswith("what is") and s["expected"].startswith("the answer is") for s in made["samples"])
    (first, *_), trained = made["trained_tokens"], []
    assert [part["trained"] for part in first] == [False, True]
    trained = first[1]["text"]
    assert "the answer is" in trained
    assert "what" not in trained


def test_no_row_is_kept_where_none_may_be(tiny_encoder: str, tmp_path: Path) -> None:
    made = record(tiny_encoder, "sequence-classification", tmp_path, keep_samples=False)
    assert not {"samples", "confusion", "trained_tokens"} & set(made)
    assert "sun" not in (tmp_path / "out" / "record.json").read_text().replace("tunekit", "")
