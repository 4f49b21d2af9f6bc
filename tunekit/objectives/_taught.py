"""A teacher's answers as columns of rows: made once, put into a batch, and compared with what a student says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.objectives._divergence import Divergence, divergence_of_logs
from tunekit.objectives._live import questions
from tunekit.objectives._vocabulary import answers, decoder_targets, with_decoder_inputs
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

LOGITS = ("teacher_logits",)
TOP = ("teacher_ids", "teacher_logs", "teacher_tail")
"""What is kept of a distribution over a vocabulary: the largest log-probabilities at the temperature, whose they are, and
the logarithm of what all others have together."""

_ID, _LOG, _TAIL = "<i4", "<f2", "<f4"
BYTES_OF_ONE, BYTES_OF_TAIL = 6, 4
"""Of one log-probability with its id, and of the rest."""

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


# ------------------------------------------------------------------------------------------------- making
def few_answers(teacher: nn.Module, task: Task, batch: Mapping[str, torch.Tensor], lengths: Sequence[int]) -> dict[str, list[bytes]]:  # fmt: skip
    """All logits of a batch, one text of bytes a row: classes, choices, (tokens, tags), or (2, tokens) for a span."""
    import torch

    outputs = teacher(**questions(teacher, batch))
    if task.name == "question-answering":
        made = torch.stack([outputs["start_logits"], outputs["end_logits"]], 1).float().cpu().numpy()
        cut = [made[i][:, where] for i, where in enumerate(_places(batch, lengths))]
    else:
        made = outputs["logits"].float().cpu().numpy()
        cut = list(made)
        if task.name == "token-classification":
            cut = [made[i][where] for i, where in enumerate(_places(batch, lengths))]
    return {"teacher_logits": [c.astype(_TAIL).tobytes() for c in cut]}


def _places(batch: Mapping[str, torch.Tensor], lengths: Sequence[int]) -> list[slice]:
    """Where the tokens of each row stand in a padded batch."""
    width = batch["input_ids"].shape[-1]
    left = batch["attention_mask"][:, 0].eq(0).tolist() if "attention_mask" in batch else [False] * len(lengths)
    return [
        slice(width - n, width) if at_left and n < width else slice(0, n)
        for n, at_left in zip(lengths, left, strict=True)
    ]


def top_answers(
    teacher: nn.Module, batch: Mapping[str, torch.Tensor], k: int, vocabulary: int, temperature: float, at_once: int
) -> dict[str, list[bytes]]:  # fmt: skip
    """The top of the distribution at every supervised token of a batch, one text of bytes a row and column."""
    import torch

    targets = decoder_targets(teacher, batch["labels"])
    said = answers(teacher, with_decoder_inputs(teacher, questions(teacher, batch), batch["labels"]))
    kept = targets.ne(-100)
    states = said.last(targets.shape[1])[kept.reshape(-1)]
    pieces = [
        _top(said.logits(states[i : i + at_once])[:, :vocabulary], k, temperature)
        for i in range(0, len(states), at_once)
    ]
    counts = kept.sum(1).tolist()
    columns = [torch.cat(c).cpu().numpy() if c else None for c in zip(*pieces, strict=True)] or [None] * 3
    return {
        name: [b"" if c is None else part.astype(kind).tobytes() for part in _parted(c, counts)]
        for name, kind, c in zip(TOP, (_ID, _LOG, _TAIL), columns, strict=True)
    }


def _parted(values: Any, counts: Sequence[int]) -> Iterator[Any]:
    start = 0
    for n in counts:
        yield None if values is None else values[start : start + n]
        start += n


def _top(logits: torch.Tensor, k: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, log-probabilities, and the logarithm of the rest's share, which is found without a difference of near numbers."""
    wide = logits.float() / temperature
    total = wide.logsumexp(-1)
    top, ids = wide.topk(k, -1)
    rest = wide.scatter(-1, ids, float("-inf")).logsumexp(-1)
    return ids, top - total[:, None], rest - total


# ------------------------------------------------------------------------------------------------- in a batch
def collate_taught(
    features: list[dict[str, Any]], collate: Collate, task: Task | None, looks_ahead: bool, k: int
) -> dict[str, torch.Tensor]:
    """A batch with the teacher's answers as tensors, at the places of what they belong to.

    Args:
        features: Rows, with or without answers.
        collate: The task's own collator.
        task: What the rows are for.
        looks_ahead: Whether the answer to a token stands at the place before it, as in a decoder.
        k: How many log-probabilities there are.
    """
    taken = [{name: row[name] for name in (*LOGITS, *TOP) if name in row} for row in features]
    plain = [{name: v for name, v in row.items() if name not in taken[i]} for i, row in enumerate(features)]
    batch = collate(plain)
    if not taken[0]:
        return batch
    if "teacher_logits" not in taken[0]:
        return batch | _top_tensors(taken, batch["labels"], looks_ahead, k)
    assert task is not None
    return batch | {"teacher_logits": _few_tensor(taken, batch, task, [len(row["input_ids"]) for row in plain])}


def _few_tensor(rows: list[dict[str, bytes]], batch: Mapping[str, Any], task: Task, lengths: Sequence[int]) -> Any:
    import numpy as np
    import torch

    flat = [np.frombuffer(row["teacher_logits"], dtype=_TAIL) for row in rows]
    if task.name not in ("question-answering", "token-classification"):
        return torch.from_numpy(np.stack(flat))
    width, spans = batch["input_ids"].shape[-1], task.name == "question-answering"
    other = 2 if spans else len(flat[0]) // lengths[0]
    made = np.zeros((len(rows), 2, width) if spans else (len(rows), width, other), dtype=np.float32)
    for i, where in enumerate(_places(batch, lengths)):
        if spans:
            made[i][:, where] = flat[i].reshape(2, -1)
        else:
            made[i][where] = flat[i].reshape(-1, other)
    return torch.from_numpy(made)


def _top_tensors(rows: list[dict[str, bytes]], labels: torch.Tensor, looks_ahead: bool, k: int) -> dict[str, Any]:
    import numpy as np
    import torch

    targets = labels.numpy()
    if looks_ahead:
        targets = np.concatenate([targets[:, 1:], np.full_like(targets[:, :1], -100)], 1)
    kept = targets != -100
    ids = np.zeros((*targets.shape, k), dtype=np.int64)
    logs = np.zeros((*targets.shape, k), dtype=np.float32)
    tail = np.zeros(targets.shape, dtype=np.float32)
    for name, kind, into in zip(TOP, (_ID, _LOG, _TAIL), (ids, logs, tail), strict=True):
        read = np.frombuffer(b"".join(row[name] for row in rows), dtype=kind)
        into[kept] = read.reshape(-1, *into.shape[2:])
    return {name: torch.from_numpy(v) for name, v in zip(TOP, (ids, logs, tail), strict=True)}


def as_outputs(task: Task, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cached logits under the names of a model's outputs."""
    if task.name == "question-answering":
        return {"start_logits": logits[:, 0], "end_logits": logits[:, 1]}
    return {"logits": logits}


# ------------------------------------------------------------------------------------------------- the loss
def top_divergence(
    logits: torch.Tensor, ids: torch.Tensor, logs: torch.Tensor, tail: torch.Tensor, kind: Divergence, temperature: float, beta: float
) -> torch.Tensor:  # fmt: skip
    """The divergence over k + 1 outcomes: each of the teacher's likeliest words, and all others as one.

    Args:
        logits: (positions, vocabulary) of the student, over as many words as the teacher was asked for.
        ids: (positions, k).
        logs: (positions, k) log-probabilities at the temperature.
        tail: (positions,) logarithm of the share of all others.
        kind: Which divergence.
        temperature: The one that the teacher's were taken at.
        beta: For `jsd`.
    """
    import torch

    wide = (logits if logits.element_size() >= 4 else logits.float()) / temperature
    total = wide.logsumexp(-1, keepdim=True)
    mine, theirs = wide.gather(-1, ids) - total, logs.to(wide.dtype)
    if ids.shape[-1] < logits.shape[-1]:
        rest = wide.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True) - total
        mine, theirs = torch.cat([mine, rest], -1), torch.cat([theirs, tail.to(wide.dtype)[:, None]], -1)
    return divergence_of_logs(mine, theirs, kind, beta) * temperature**2
