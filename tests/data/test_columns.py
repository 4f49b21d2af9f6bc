"""Columns are found by common names and kinds; what is unclear is asked, never guessed."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from tunekit.data.columns import infer_task, resolve
from tunekit.errors import InvalidError, MissingError, TunekitError, UnsupportedError
from tunekit.task import TASKS, Task

ENCODER = ("sequence-classification", "token-classification", "question-answering", "multiple-choice")
DECODER = ("causal-lm", "sequence-classification", "token-classification", "question-answering")
SEQ2SEQ = ("seq2seq", "sequence-classification", "question-answering")
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
SQUAD = {"text": ["Oslo"], "answer_start": [0]}


def rows(**columns: Any) -> Dataset:
    return Dataset.from_dict({name: [value] for name, value in columns.items()})


KNOWN: list[tuple[tuple[str, ...], dict[str, Any], str, dict[str, str]]] = [
    (ENCODER, {"text": "a", "label": 1, "label_name": "x"}, "sequence-classification", {"text": "text", "label": "label"}),
    (DECODER, {"utterance": "a", "intent": "x"}, "sequence-classification", {"text": "utterance", "label": "intent"}),
    (ENCODER, {"Review": "a", "Category": "x"}, "sequence-classification", {"text": "Review", "label": "Category"}),
    (
        ENCODER, {"premise": "a", "hypothesis": "b", "label": 1, "relatedness": 2.5}, "sequence-classification",
        {"text": "premise", "text_pair": "hypothesis", "label": "label"},
    ),
    (
        ENCODER, {"question": "a", "sentence": "b", "label": 1}, "sequence-classification",
        {"text": "question", "text_pair": "sentence", "label": "label"},
    ),
    (ENCODER, {"text": "a", "labels": ["x", "y"]}, "sequence-classification", {"text": "text", "label": "labels"}),
    (ENCODER, {"tokens": ["a"], "ner_tags": [1]}, "token-classification", {"tokens": "tokens", "tags": "ner_tags"}),
    (DECODER, {"words": ["a"], "labels": ["O"]}, "token-classification", {"tokens": "words", "tags": "labels"}),
    (
        ENCODER, {"id": "1", "title": "t", "context": "c", "question": "q", "answers": SQUAD}, "question-answering",
        {"context": "context", "question": "question", "answers": "answers"},
    ),
    (
        SEQ2SEQ, {"context": "c", "question": "q", "answers": SQUAD}, "question-answering",
        {"context": "context", "question": "question", "answers": "answers"},
    ),
    (
        ENCODER, {"question": "q", "choices": ["a", "b"], "answer": 1}, "multiple-choice",
        {"text": "question", "choices": "choices", "label": "answer"},
    ),
    (
        ENCODER, {"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}, "multiple-choice",
        {"text": "question", "choices": "choices", "label": "answerKey"},
    ),
    (SEQ2SEQ, {"article": "a", "highlights": "b", "id": "1"}, "seq2seq", {"source": "article", "target": "highlights"}),
    (SEQ2SEQ, {"dialogue": "a", "summary": "b"}, "seq2seq", {"source": "dialogue", "target": "summary"}),
    (DECODER, {"document": "a", "summary": "b"}, "causal-lm", {"prompt": "document", "completion": "summary"}),
    ((*DECODER, "seq2seq"), {"source": "a", "target": "b"}, "seq2seq", {"source": "source", "target": "target"}),
    (DECODER, {"prompt": "a", "completion": "b"}, "causal-lm", {"prompt": "prompt", "completion": "completion"}),
    (DECODER, {"prompt": TALK[:1], "completion": TALK[1:]}, "causal-lm", {"prompt": "prompt", "completion": "completion"}),
    (
        DECODER, {"instruction": "a", "input": "", "response": "b"}, "causal-lm",
        {"prompt": "instruction", "completion": "response", "input": "input"},
    ),
    (
        DECODER, {"instruction": "a", "context": "c", "response": "b", "category": "d"}, "causal-lm",
        {"prompt": "instruction", "completion": "response", "input": "context"},
    ),
    (DECODER, {"instruction": "a", "response": "b", "final_answer": "1"}, "causal-lm", {"prompt": "instruction", "completion": "response"}),
    (DECODER, {"messages": TALK, "text": "x"}, "causal-lm", {"messages": "messages"}),
    (DECODER, {"conversations": [{"from": "human", "value": "hi"}]}, "causal-lm", {"messages": "conversations"}),
    (DECODER, {"title": "t", "text": "a"}, "causal-lm", {"text": "text"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("able", "columns", "task", "expected"), KNOWN, ids=[f"{k[2]}-{'-'.join(k[1])}" for k in KNOWN]
)
def test_common_names_speak_for_themselves(
    able: tuple[str, ...], columns: dict[str, Any], task: str, expected: dict[str, str]
) -> None:
    found = infer_task(rows(**columns), None, able)
    assert found.name == task
    assert resolve(rows(**columns), None, found) == expected
    # What a plan stores is read back to the same.
    assert resolve(rows(**columns), expected, found) == expected


def test_the_task_is_inferred_where_none_is_named() -> None:
    assert resolve(rows(text="a", label=1), None, None) == {"text": "text", "label": "label"}


def test_what_the_user_names_wins_and_the_rest_is_found() -> None:
    data = rows(text="a", body="b", label=1, score=0.5)
    task = Task.named("sequence-classification")
    assert resolve(data, {"label": "score"}, task) == {"text": "text", "label": "score"}
    assert resolve(data, {"text": "body"}, task) == {"text": "body", "label": "label"}
    assert resolve(rows(foo="a", bar="b", baz=1), {"text": "foo", "text_pair": "bar", "label": "baz"}, task) == {
        "text": "foo",
        "text_pair": "bar",
        "label": "baz",
    }
    assert infer_task(rows(foo="a", bar=1), {"text": "foo", "label": "bar"}, ENCODER).name == "sequence-classification"
    own = {"prompt": "q", "completion": "a"}
    assert resolve(rows(q="x", a="y", messages=TALK), own, Task.named("causal-lm")) == own


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_a_missing_column_names_what_is_there_and_the_way_out(task: Task) -> None:
    with pytest.raises(MissingError) as caught:
        resolve(rows(foo="a", bar=1), None, task)
    assert caught.value.codes == ("column-missing",)
    assert "`foo`, `bar`" in str(caught.value)
    assert "columns={" in str(caught.value)


def test_a_column_that_is_not_there_names_the_nearest_and_all_faults_come_at_once() -> None:
    with pytest.raises(MissingError) as caught:
        resolve(
            rows(sentence="a", klass=1), {"text": "sentense", "label": "class"}, Task.named("sequence-classification")
        )
    assert caught.value.codes == ("column-missing", "column-missing")
    assert "`sentence`?" in str(caught.value)
    assert "`klass`?" in str(caught.value)
    with pytest.raises(MissingError):
        infer_task(rows(text="a"), {"text": "txt"}, ENCODER)


def test_a_name_that_is_not_ours_names_the_nearest() -> None:
    with pytest.raises(InvalidError) as caught:
        resolve(rows(text="a", label=1), {"lable": "label"}, Task.named("sequence-classification"))
    assert caught.value.codes == ("column-unknown",)
    assert "`label`?" in str(caught.value)
    with pytest.raises(InvalidError) as caught:
        infer_task(rows(text="a", label=1), {"lable": "label"}, ENCODER)
    assert caught.value.codes == ("column-unknown",)


def test_values_of_another_kind_are_refused_in_words() -> None:
    with pytest.raises(InvalidError) as caught:
        resolve(rows(text=["a"], label=1), None, Task.named("sequence-classification"))
    assert caught.value.codes == ("column-kind",)
    assert "a list of texts" in str(caught.value)
    with pytest.raises(InvalidError) as caught:
        resolve(rows(text=None, label=1), None, Task.named("sequence-classification"))
    assert "nothing but nulls" in str(caught.value)


AMBIGUOUS: list[tuple[tuple[str, ...], dict[str, Any], set[str]]] = [
    (SEQ2SEQ, {"text": "a", "summary": "b", "label": 1}, {"seq2seq", "sequence-classification"}),
    (
        ENCODER,
        {"text": "a", "label": 1, "tokens": ["a"], "tags": ["O"]},
        {"sequence-classification", "token-classification"},
    ),
]


@pytest.mark.parametrize(("able", "columns", "choices"), AMBIGUOUS)
def test_an_ambiguous_task_lists_the_choices(able: tuple[str, ...], columns: dict[str, Any], choices: set[str]) -> None:
    with pytest.raises(InvalidError) as caught:
        infer_task(rows(**columns), None, able)
    assert caught.value.codes == ("task-ambiguous",)
    assert all(f"`task='{choice}'`" in str(caught.value) for choice in choices)


def test_an_ambiguous_column_lists_the_choices() -> None:
    with pytest.raises(InvalidError) as caught:
        resolve(rows(text="a", coarse_label=1, fine_label=2), None, Task.named("sequence-classification"))
    assert caught.value.codes == ("column-ambiguous",)
    assert "`coarse_label`, `fine_label`" in str(caught.value)


def test_columns_that_fit_another_architecture_say_so() -> None:
    with pytest.raises(UnsupportedError) as caught:
        infer_task(rows(messages=TALK), None, ENCODER)
    assert caught.value.codes == ("task-architecture",)
    with pytest.raises(TunekitError) as other:
        infer_task(rows(foo="a"), None, ENCODER)
    assert other.value.codes == ("task-unclear",)


def test_texts_that_never_repeat_are_no_classes() -> None:
    free = Dataset.from_dict({"text": ["x"] * 20, "target": [f"answer {i}" for i in range(20)]})
    few = Dataset.from_dict({"text": ["x"] * 20, "target": [f"class {i % 3}" for i in range(20)]})
    assert infer_task(few, None, DECODER).name == "sequence-classification"
    assert infer_task(free, None, DECODER).name == "causal-lm"
    by_hand = {"text": "text", "label": "target"}
    assert infer_task(free, by_hand, DECODER).name == "sequence-classification"
