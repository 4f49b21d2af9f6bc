"""Filling a cache: how large it will be, and the teacher's answers to every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.objectives import _taught
from tunekit.objectives._generated import written

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from tunekit.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """How the teacher is asked."""

    task: Task
    content: str
    """`logits`, `top-k` or `texts`."""
    tokenizer: Any
    collate: _taught.Collate
    top_k: int
    vocabulary: int
    temperature: float
    at_once: int
    rows_at_once: int
    target_tokens: int
    target_beams: int


def size_bytes(
    dataset: datasets.Dataset, content: str, k: int, classes: int, by_token: bool, looks_ahead: bool, tokens: int
) -> int:  # fmt: skip
    """About how much a cache will take on disk; of log-probabilities it is exact but for Arrow's own 0.1 %.

    Args:
        dataset: The encoded rows.
        content: `logits`, `top-k` or `texts`.
        k: Log-probabilities kept of each distribution.
        classes: Answers of each row or token where all are kept.
        by_token: Whether they are of tokens.
        looks_ahead: Whether a row's first token is no target.
        tokens: Most tokens of a text.
    """
    if content == "top-k":
        one = k * _taught.BYTES_OF_ONE + _taught.BYTES_OF_TAIL
        return one * sum(supervised(row, looks_ahead) for row in _column(dataset, "labels"))
    lengths = [len(ids) for ids in _column(dataset, "input_ids")]
    if content == "texts":
        return sum(4 * 3 * (n + tokens) for n in lengths)
    return sum(4 * classes * (n if by_token else 1) for n in lengths)


def supervised(labels: Sequence[int], looks_ahead: bool) -> int:
    """How many tokens of a row are targets."""
    return sum(t != -100 for t in (labels[1:] if looks_ahead else labels))


def _column(dataset: datasets.Dataset, name: str) -> Any:
    for batch in dataset.select_columns([name]).iter(1_000):
        yield from batch[name]


def answerer(
    teacher: nn.Module, dataset: datasets.Dataset, asking: Asking
) -> Callable[[int, int], dict[str, list[Any]]]:
    """The function from the first row and the one after the last to the columns of a part, in the order of the rows."""
    import torch

    device = next(teacher.parameters()).device

    def answer(start: int, end: int) -> dict[str, list[Any]]:
        rows = [dataset[i] for i in range(start, end)]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))  # little padding
        found: dict[int, dict[str, Any]] = {}
        for i in range(0, len(order), asking.rows_at_once):
            chosen = order[i : i + asking.rows_at_once]
            with torch.no_grad():
                columns = _ask(teacher, [rows[j] for j in chosen], asking, device)
            found |= {j: {name: c[at] for name, c in columns.items()} for at, j in enumerate(chosen)}
        return {name: [found[i][name] for i in range(len(rows))] for name in found[0]}

    return answer


def _ask(teacher: nn.Module, rows: list[dict[str, Any]], asking: Asking, device: torch.device) -> Mapping[str, list[Any]]:  # fmt: skip
    if asking.content == "texts":
        return written(teacher, rows, asking.tokenizer, asking.target_tokens, asking.target_beams, asking.vocabulary)
    batch = {k: v.to(device) for k, v in asking.collate(rows).items()}
    if asking.content == "logits":
        return _taught.few_answers(teacher, asking.task, batch, [len(row["input_ids"]) for row in rows])
    k = min(asking.top_k, asking.vocabulary)
    return _taught.top_answers(teacher, batch, k, asking.vocabulary, asking.temperature, asking.at_once)
