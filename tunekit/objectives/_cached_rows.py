"""Rows and a cache of the teacher's answers: filled from the rows, checked against them, and joined to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import UnsupportedError, raise_all
from tunekit.finding import error
from tunekit.objectives import _fingerprint
from tunekit.objectives._cache import Cache, Facts
from tunekit.objectives._fill import Asking, answerer, size_bytes
from tunekit.objectives._live import unwrapped
from tunekit.objectives._pair import source
from tunekit.objectives._teacher import (
    VOCABULARY_TASKS,
    check_words,
    class_faults,
    classes_of,
    read_teacher,
    tokenizer_beside,
    words_of,
)
from tunekit.task import Task

if TYPE_CHECKING:
    from torch import nn

_FILL = "fill it by `tunekit teach plan.yaml`"
_WITH_CLASSES = ("sequence-classification", "token-classification")


def content_of(d: Any, task: Task) -> str:
    """What a cache of this objective holds."""
    if d.targets == "teacher":
        return "texts"
    return "top-k" if task.name in VOCABULARY_TASKS else "logits"


def facts_of(d: Any, dataset: Any, task: Task, tokenizer: Any) -> Facts:
    """What a cache of this objective and these rows is made of.

    Raises:
        UnsupportedError: `distillation-cache-rows`.
    """
    if not hasattr(dataset, "column_names") or tokenizer is None:
        seen = "a cache with rows that are no `datasets.Dataset`, or without a tokenizer"
        raise UnsupportedError(error("distillation-cache-rows", seen, "it could not be told whether it belongs to them", "use `tunekit.trainer`, or pass a Dataset and `processing_class`"))  # fmt: skip
    content = content_of(d, task)
    return Facts(
        content=content,
        rows=_fingerprint.of_rows(dataset),
        teacher=_fingerprint.of_teacher(d.teacher, d.teacher_revision, d.teacher_adapter, d._held.get("given")),
        reading=f"{d.teacher_dtype or 'default'}, {d.teacher_quantization or 'not quantised'}",
        tokenizer=_fingerprint.of_tokenizer(tokenizer),
        task=task.name,
        temperature=d.temperature if content == "top-k" else None,
        top_k=d.top_k if content == "top-k" else None,
        writing=f"{d.target_tokens} tokens, {d.target_beams} beams" if content == "texts" else None,
    )


def with_answers(d: Any, dataset: Any, model: nn.Module, tokenizer: Any) -> Any:
    """The rows with the answers beside them, or the texts in their place."""
    import datasets

    task = d.task_of(model)
    cache = Cache(folder=Path(str(d.cache)).expanduser())
    told = cache.check(facts_of(d, dataset, task, tokenizer), _FILL)
    faults = []
    if task.name in _WITH_CLASSES:
        faults += class_faults(classes_of(unwrapped(model).config), tuple(told["classes"]))
    if task.name in VOCABULARY_TASKS and told["vocabulary"] > words_of(model):
        faults.append(
            error("distillation-vocabulary", f"a cache over {told['vocabulary']:,} words for a student of {words_of(model):,}", "the student has no such words", _FILL)
        )  # fmt: skip
    raise_all(faults, UnsupportedError)
    read = cache.read(told)
    if d.targets == "teacher":
        return read
    d._held["vocabulary"] = told["vocabulary"]
    seq2seq = bool(getattr(unwrapped(model).config, "is_encoder_decoder", False))
    d._held["cached"] = {"task": task, "looks_ahead": not seq2seq, "k": min(d.top_k, told["vocabulary"] or d.top_k)}
    return datasets.concatenate_datasets([dataset, read], axis=1)


def fill(
    d: Any,
    dataset: Any,
    task: Task,
    student: Any,
    tokenizer: Any,
    collate: Any,
    *,
    rows_at_once: int,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
    overwrite: bool,
    only_size: bool,
) -> int:
    """See `Distillation.teach`."""
    facts, cache = facts_of(d, dataset, task, tokenizer), Cache(folder=Path(str(d.cache)).expanduser())
    looks_ahead = not bool(getattr(student, "is_encoder_decoder", False))
    size = size_bytes(
        dataset, facts.content, d.top_k, _answers_each(task, student, dataset), task.name in ("token-classification", "question-answering"),
        looks_ahead, d.target_tokens,
    )  # fmt: skip
    say(_size_line(d, len(dataset), size, facts.content, str(cache.folder)))
    if only_size:
        return size
    told = cache.told()
    if told is not None and not overwrite:
        raise_all(cache.stale(facts, told), UnsupportedError)
    teacher = _teacher_for(d, task, student, tokenizer)
    vocabulary = (
        min(words_of(teacher), int(student.get_text_config().vocab_size)) if task.name in VOCABULARY_TASKS else 0
    )
    asking = Asking(
        task=task, content=facts.content, tokenizer=tokenizer, collate=collate, top_k=d.top_k, vocabulary=vocabulary,
        temperature=d.temperature, at_once=d.positions_at_once, rows_at_once=rows_at_once, target_tokens=d.target_tokens,
        target_beams=d.target_beams,
    )  # fmt: skip
    extra = {"vocabulary": vocabulary, "classes": list(classes_of(unwrapped(teacher).config)) if task.name in _WITH_CLASSES else []}  # fmt: skip
    cache.fill(facts, extra, len(dataset), size, answerer(teacher, dataset, asking), progress, overwrite)
    return size


def _answers_each(task: Task, student: Any, dataset: Any) -> int:
    """Numbers that are kept of each row or token."""
    if task.name == "multiple-choice":
        return len(dataset[0]["input_ids"])
    return 2 if task.name == "question-answering" else len(student.id2label)


def _size_line(d: Any, rows: int, size: int, content: str, folder: str) -> str:
    held = {"logits": "all logits", "top-k": f"top {d.top_k} log-probabilities and the rest", "texts": "texts, at most"}
    amount = f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
    return f"{rows:,} rows, {held[content]}: {amount} in {folder}"


def _teacher_for(d: Any, task: Task, student: Any, tokenizer: Any) -> Any:
    """The teacher, on a GPU where there is one, compared with the student's configuration."""
    import torch

    teacher = d._held.get("given")
    if teacher is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        teacher = read_teacher(source(d, torch.float32, device), task, student)
    if task.name in _WITH_CLASSES:
        raise_all(class_faults(classes_of(student), classes_of(unwrapped(teacher).config)), UnsupportedError)
    sizes = (int(student.get_text_config().vocab_size), words_of(teacher))
    check_words(sizes, tokenizer, tokenizer_beside(teacher))
    return teacher
