"""Labels of every kind become what a head takes; what no class has is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from tunekit.data.classify import choice_index
from tunekit.data.labels import encode_labels, encode_tags, label_names, num_labels, problem_type
from tunekit.errors import InvalidError
from tunekit.task import TASKS, Task

SEQUENCE, TOKENS = Task.named("sequence-classification"), Task.named("token-classification")
COLUMNS = {"text": "text", "label": "label"}
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def rows(labels: list[Any], **more: list[Any]) -> Dataset:
    return Dataset.from_dict({"text": ["x"] * len(labels), "label": labels, **more})


KINDS: list[tuple[str, list[Any], str, tuple[str, ...], list[Any]]] = [
    ("texts", ["b", "a", "b"], SINGLE, ("a", "b"), [1, 0, 1]),
    ("ids", [2, 0, 1], SINGLE, ("0", "1", "2"), [2, 0, 1]),
    ("ids with a gap", [3, 0, 1], SINGLE, ("0", "1", "2", "3"), [3, 0, 1]),
    ("sparse numbers are names", [4, 0, 4], SINGLE, ("0", "4"), [1, 0, 1]),
    ("texts of digits are names", ["10", "2"], SINGLE, ("10", "2"), [0, 1]),
    ("truth", [True, False], SINGLE, ("False", "True"), [1, 0]),
    ("numbers", [0.5, 2.0], REGRESSION, (), [0.5, 2.0]),
    ("several numbers", [[0.5, 1], [2, 3.0]], REGRESSION, (), [[0.5, 1.0], [2.0, 3.0]]),
    ("zeros and ones", [[0, 1, 1], [0, 0, 0]], MULTI, ("0", "1", "2"), [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]),
    ("zeros and ones as numbers", [[0.0, 1.0], [1.0, 1.0]], MULTI, ("0", "1"), [[0.0, 1.0], [1.0, 1.0]]),
    ("lists of texts", [["b"], [], ["a", "b"]], MULTI, ("a", "b"), [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]),
    ("lists of ids", [[2], [0, 1]], MULTI, ("0", "1", "2"), [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]),
]


@pytest.mark.parametrize(("labels", "problem", "names", "encoded"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS])
def test_every_kind_of_label_is_read(
    labels: list[Any], problem: str, names: tuple[str, ...], encoded: list[Any]
) -> None:
    data = rows(labels)
    assert problem_type(data, SEQUENCE, COLUMNS) == problem
    assert label_names(data, SEQUENCE, COLUMNS) == names
    assert encode_labels(labels, names, problem) == encoded
    width = len(encoded[0]) if isinstance(encoded[0], list) else 1
    assert num_labels(data, COLUMNS, names, problem) == (width if problem == REGRESSION else len(names))


def test_names_come_from_class_labels_and_from_a_column_beside() -> None:
    features = Features(text=Value("string"), label=ClassLabel(names=["no", "maybe", "yes"]))
    assert label_names(rows([0, 2]).cast(features), SEQUENCE, COLUMNS) == ("no", "maybe", "yes")
    assert label_names(rows([1, 0, 1], label_name=["pos", "neg", "pos"]), SEQUENCE, COLUMNS) == ("neg", "pos")
    # A column that contradicts itself names nothing.
    assert label_names(rows([1, 0, 1], label_name=["pos", "neg", "neg"]), SEQUENCE, COLUMNS) == ("0", "1")


def test_given_names_win_and_bound_the_ids() -> None:
    assert label_names(rows([0, 1]), SEQUENCE, COLUMNS, ["a", "b", "c"]) == ("a", "b", "c")
    assert label_names(rows(["c", "a"]), SEQUENCE, COLUMNS, ("a", "b", "c")) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("labels", "given", "code", "words"),
    [
        ([0, 1, 2, 2], ("a", "b"), "labels-range", "label 2 in 2 rows (first: 2)"),
        (["a", "z"], ("a", "b"), "labels-range", "'z'"),
        ([0, -1, 1], (), "labels-range", "-1 often means"),
        ([[0], [3]], ("a", "b"), "labels-range", "label 3"),
        ([0, None, 1], (), "labels-missing", "1 row (first: 1)"),
        (["a", "b"], ("a", "a"), "labels-names", "twice"),
        (["a", "a"], (), "labels-single", "'a'"),
    ],
)
def test_labels_that_no_class_has_are_refused(labels: list[Any], given: tuple[str, ...], code: str, words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        label_names(rows(labels), SEQUENCE, COLUMNS, given)
    assert caught.value.codes == (code,)
    assert words in str(caught.value)
    assert caught.value.findings[0].fix


def test_labels_of_the_evaluation_rows_are_held_against_the_training_names() -> None:
    with pytest.raises(InvalidError) as caught:
        encode_labels(["a", "new"], ("a", "b"), SINGLE)
    assert caught.value.codes == ("labels-range",)


def test_both_faults_of_a_column_come_at_once() -> None:
    with pytest.raises(InvalidError) as caught:
        label_names(rows([0, None, 7]), SEQUENCE, COLUMNS, ("a", "b"))
    assert caught.value.codes == ("labels-missing", "labels-range")


def test_a_demanded_problem_type_is_obeyed_or_refused() -> None:
    assert problem_type(rows([1, 2]), SEQUENCE, COLUMNS, REGRESSION) == REGRESSION
    assert label_names(rows([1, 2]), SEQUENCE, COLUMNS, (), REGRESSION) == ()
    for labels, demanded in (([1, 2], MULTI), (["a", "b"], REGRESSION), ([0.5, 1.0], SINGLE), ([1, 2], "banana")):
        with pytest.raises(InvalidError) as caught:
            problem_type(rows(labels), SEQUENCE, COLUMNS, demanded)
        assert caught.value.codes == ("problem-type",)


def test_numbers_that_are_missing_are_refused() -> None:
    for hole in (None, float("nan")):
        with pytest.raises(InvalidError) as caught:
            encode_labels([1.0, hole], (), REGRESSION)
        assert caught.value.codes == ("labels-missing",)


def test_tags_are_named_and_encoded() -> None:
    columns = {"tokens": "tokens", "tags": "tags"}
    texts = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [["O", "B-x"]]})
    assert label_names(texts, TOKENS, columns) == ("B-x", "O")
    assert encode_tags([["O", "B-x"]], ("B-x", "O")) == [[1, 0]]
    features = Features(tokens=List(Value("string")), tags=List(ClassLabel(names=["O", "B-x"])))
    numbers = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[0, 1]]}, features=features)
    assert label_names(numbers, TOKENS, columns) == ("O", "B-x")
    assert encode_tags([[0, -100, 1]], ("O", "B-x")) == [[0, -100, 1]]
    with pytest.raises(InvalidError) as caught:
        label_names(texts, TOKENS, columns, ("O", "B-y"))
    assert caught.value.codes == ("labels-range",)


@pytest.mark.parametrize("task", [t for t in TASKS if t.name not in (SEQUENCE.name, TOKENS.name)], ids=str)
def test_other_tasks_have_no_classes(task: Task) -> None:
    assert label_names(rows([0, 1]), task, COLUMNS) == ()
    assert problem_type(rows([0, 1]), task, COLUMNS) is None


def test_what_is_no_number_is_no_label() -> None:
    with pytest.raises(InvalidError) as caught:
        encode_labels([[0.0, 1.0], [math.nan, 1.0]], ("a", "b"), "multi_label_classification")
    assert caught.value.codes == ("labels-range",)
    with pytest.raises(InvalidError):
        choice_index("²", ["yes", "no", "maybe"])
