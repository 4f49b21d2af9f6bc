"""Facts of the rows are counted right, the same in every process, and what stands out is said."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tunekit.data.columns import resolve
from tunekit.data.encode import encode
from tunekit.data.facts import data_facts, fingerprint, sample
from tunekit.data.labels import IGNORE
from tunekit.data.read import Rows
from tunekit.finding import Finding
from tunekit.task import Task
from tunekit.workload import DataFacts

CLASSES = Task.named("sequence-classification")


def facts(
    train: dict[str, Any], task: str = CLASSES.name, held: dict[str, Any] | None = None, **settings: Any
) -> tuple[DataFacts, tuple[Finding, ...]]:
    rows = Rows(train=Dataset.from_dict(train), eval=Dataset.from_dict(held) if held else None)
    tokenizer = settings.pop("tokenizer", None)
    columns = resolve(rows.train, None, Task.named(task))
    return data_facts(rows, Task.named(task), columns, tokenizer, **settings)


def codes(findings: tuple[Finding, ...]) -> set[str]:
    return {f.code for f in findings} - {"lengths-estimated"}


def test_rows_classes_and_splits_are_counted() -> None:
    data = {"text": ["a", "b", "c", "d"], "label": ["x", "y", "y", "y"]}
    found, findings = facts(data, held={"text": ["e"], "label": ["x"]})
    assert (found.num_examples, found.num_eval_examples, found.num_labels) == (4, 1, 2)
    assert found.label_names == ("x", "y")
    assert found.class_counts == (1, 3)
    assert found.problem_type == "single_label_classification"
    assert found.columns == (("text", "text"), ("label", "label"))
    assert codes(findings) == set()


def test_ids_have_no_names_and_numbers_no_classes() -> None:
    ids, _ = facts({"text": ["a", "b"], "label": [0, 1]})
    assert (ids.label_names, ids.num_labels, ids.class_counts) == ((), 2, (1, 1))
    number, _ = facts({"text": ["a", "b"], "label": [0.5, 1.5]})
    assert (number.label_names, number.num_labels, number.class_counts) == ((), 1, ())
    assert number.problem_type == "regression"


def test_a_row_counts_for_each_of_its_classes_and_tags() -> None:
    several, _ = facts({"text": ["a", "b"], "label": [["x", "y"], ["y"]]})
    assert several.class_counts == (1, 2)
    tags, _ = facts({"tokens": [["a", "b"], ["c"]], "tags": [["O", "O"], ["B-x"]]}, "token-classification")
    assert (tags.label_names, tags.class_counts, tags.num_labels) == (("B-x", "O"), (1, 1), 2)
    choices, _ = facts({"text": ["a"], "choices": [["b", "c", "d"]], "label": [0]}, "multiple-choice")
    assert (choices.num_choices, choices.num_labels) == (3, None)


DATA: dict[str, dict[str, list[Any]]] = {
    "causal-lm": {"prompt": ["the film", "a"], "completion": [" was good", " b"]},
    "seq2seq": {"source": ["the film was good", "a"], "target": ["good", "b c d"]},
    "sequence-classification": {"text": ["the film was good", "a"], "label": [0, 1]},
    "token-classification": {"tokens": [["the", "film"], ["a"]], "tags": [["O", "B-x"], ["O"]]},
    "question-answering": {"question": ["where ?", "a"], "context": ["in oslo", "b"], "answers": ["oslo", "b"]},
    "multiple-choice": {"text": ["a", "a"], "choices": [["b", "c d e"], ["b", "c"]], "label": [0, 1]},
}


@pytest.mark.parametrize("task", DATA)
def test_lengths_are_those_that_training_will_see(task: str, minilm: PreTrainedTokenizerBase) -> None:
    found, _ = facts(DATA[task], task, tokenizer=minilm)
    data = Dataset.from_dict(DATA[task])
    made = encode(data, Task.named(task), minilm, columns=resolve(data, None, Task.named(task))).dataset
    nested = [row if isinstance(row[0], list) else [row] for row in made["input_ids"]]
    assert found.lengths == tuple(sorted(max(map(len, row)) for row in nested))
    if task in ("causal-lm", "seq2seq", "token-classification"):
        assert found.supervised_tokens == sum(x != IGNORE for row in made["labels"] for x in row) / len(data)
    if task == "seq2seq":
        assert found.target_lengths == tuple(sorted(map(len, made["labels"])))


@pytest.mark.parametrize("task", DATA)
def test_lengths_without_a_tokenizer_are_near_and_said_to_be_estimated(
    task: str, minilm: PreTrainedTokenizerBase
) -> None:
    long = {k: [_longer(v) for v in values] for k, values in DATA[task].items()}
    if task == "question-answering":
        long["answers"] = ["people"] * 2
        long["context"] = ["seven good people went over the old bridge and then home"] * 2
    known, _ = facts(long, task, tokenizer=minilm)
    guessed, findings = facts(long, task)
    assert "lengths-estimated" in {f.code for f in findings}
    assert known.mean_tokens / 3 < guessed.mean_tokens < known.mean_tokens * 3
    assert (guessed.supervised_tokens is None) == (known.supervised_tokens is None)
    if known.supervised_tokens and guessed.supervised_tokens:
        assert known.supervised_tokens / 3 < guessed.supervised_tokens < known.supervised_tokens * 3


def _longer(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join([value, "seven good people went over the old bridge"] * 3)
    return value


def test_supervised_tokens_stop_where_rows_are_cut(bpe: PreTrainedTokenizerBase) -> None:
    data = {"prompt": ["a b c d"], "completion": [" e f g h"]}
    whole, _ = facts(data, "causal-lm", tokenizer=bpe)
    short, findings = facts(data, "causal-lm", tokenizer=bpe, max_length=10)
    assert short.lengths == whole.lengths
    assert short.supervised_tokens == 10 - (whole.max_tokens - (whole.supervised_tokens or 0))
    assert "data-truncated" in codes(findings)


def test_repeats_leaks_and_conflicts_are_counted_whatever_case_and_space() -> None:
    data = {"text": ["Good  film", "good film", "bad", "fine"], "label": [1, 0, 0, 1]}
    found, findings = facts(data, held={"text": ["FINE ", "new"], "label": [1, 0]})
    assert (found.num_duplicates, found.num_leaked, found.num_conflicts) == (1, 1, 2)
    assert codes(findings) == {"data-duplicates", "data-leaked", "labels-conflict"}


def test_columns_are_not_run_together() -> None:
    found, _ = facts({"premise": ["a b", "a"], "hypothesis": ["c", "b c"], "label": [0, 1]})
    assert (found.num_duplicates, found.num_conflicts) == (0, 0)


def test_several_answers_to_one_prompt_are_no_repeats() -> None:
    data = {"source": ["a", "a", "a"], "target": ["x", "y", "y"]}
    found, _ = facts(data, "seq2seq", held={"source": ["a"], "target": ["z"]})
    assert (found.num_duplicates, found.num_leaked, found.num_conflicts) == (1, 1, 0)


def test_uneven_and_empty_classes_are_said() -> None:
    _, uneven = facts({"text": [str(i) for i in range(12)], "label": [0] + [1] * 11})
    assert codes(uneven) == {"labels-imbalance"}
    _, empty = facts({"text": ["a", "b"], "label": ["x", "y"]}, given=("x", "y", "z"))
    assert codes(empty) == {"labels-unseen"}
    assert any("z" in f.seen for f in empty)


def test_a_fingerprint_follows_the_rows_in_use_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1], "id": [7, 8]})
    columns = {"text": "text", "label": "label"}
    first = fingerprint(data, columns)
    assert len(first) == 16
    assert fingerprint(data.remove_columns("id").with_format("numpy"), columns) == first
    assert fingerprint(data.select([1, 0]), columns) != first
    assert fingerprint(data.select([0]), columns) != first
    monkeypatch.setattr("tunekit.data.facts.FINGERPRINT_ROWS", 1)
    assert fingerprint(data, columns) not in (first, fingerprint(data.select([0]), columns))


def test_the_same_rows_give_the_same_facts_under_any_hash_seed() -> None:
    script = (
        "from tunekit.data.facts import data_facts; from tunekit.data.read import read; from tunekit.task import Task\n"
        "rows = read([{'text': f'row {i % 1500}', 'label': 'abc'[i % 3]} for i in range(3000)])\n"
        "print(data_facts(rows, Task.named('sequence-classification'), {'text': 'text', 'label': 'label'}))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(runs) == 1
    assert "num_duplicates=1500" in runs.pop()


def test_large_data_is_sampled() -> None:
    found, _ = facts({"text": [f"text {i}" for i in range(3000)], "label": [i % 2 for i in range(3000)]})
    assert len(found.lengths) == 1000
    assert found.num_examples == sum(found.class_counts) == 3000
    assert len(set(sample(3000))) == 1000
