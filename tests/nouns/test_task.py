"""Tasks: six names, each of an auto class that transformers has."""

from __future__ import annotations

import pytest

from tunekit.errors import InvalidError
from tunekit.task import TASKS, Task

NAMES = (
    "causal-lm", "seq2seq", "sequence-classification", "token-classification", "question-answering", "multiple-choice",
)  # fmt: skip


def test_there_are_six_tasks() -> None:
    assert tuple(t.name for t in TASKS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_found_by_its_name_and_prints_as_it(name: str) -> None:
    assert str(Task.named(name)) == Task.named(name).name == name


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_hosts_know_what_a_task_names(task: Task) -> None:
    import transformers
    from peft import TaskType

    assert hasattr(transformers, task.auto_class)
    assert task.peft_task_type is None or task.peft_task_type in set(TaskType)
    assert (task.peft_task_type is None) == (task.name == "multiple-choice")


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("text-classification", "sequence-classification"), ("SEQ_CLS", "sequence-classification"), ("NER", "token-classification"),
        ("summarization", "seq2seq"), ("SEQ_2_SEQ_LM", "seq2seq"), ("CAUSAL_LM", "causal-lm"), ("text generation", "causal-lm"),
        ("question_answering", "question-answering"), ("QUESTION_ANS", "question-answering"), ("casual-lm", "causal-lm"),
    ],
)  # fmt: skip
def test_what_others_call_a_task_is_answered_with_our_name(typed: str, ours: str) -> None:
    with pytest.raises(InvalidError, match=f"`{ours}`") as caught:
        Task.named(typed)
    assert caught.value.codes == ("task-unknown",)


@pytest.mark.parametrize("name", ["", "zzz", None, 3])
def test_a_name_that_is_like_none_lists_them_all(name: object) -> None:
    with pytest.raises(InvalidError, match="Known: `causal-lm`"):
        Task.named(name)  # type: ignore[arg-type]
