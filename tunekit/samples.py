"""What a person wants to see of a finished run: which tokens were trained, what it answers to rows it had not seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tunekit.task import Task

IGNORED = -100
_SHOWN, _COUNTED, _TRAINED, _WRITTEN = 12, 1000, 2, 3
"""Rows shown, rows counted in the confusion matrix, rows whose trained tokens are marked, texts that are written."""
_NEW_TOKENS, _PROMPT = 48, 400


def samples(trainer: Any, task: Task, problem_type: str | None = None) -> dict[str, Any]:
    """Trained tokens, answers to held-out rows and, with classes, how often each was taken for which.

    Args:
        trainer: A Trainer that has trained, in one process; the model is used, not changed.
        task: What it learnt.
        problem_type: For sequence classification.

    Returns:
        `trained_tokens` (rows of `{"text", "trained"}` stretches), `samples` (`text`, `expected`, `predicted` and, with
        classes, `probability`), `confusion` (`names`, `counts` by expected and predicted class). What a task has not is left out.
    """
    import torch

    model, rows = trainer.model, trainer.eval_dataset
    found: dict[str, Any] = {}
    if task.name == "causal-lm":
        found["trained_tokens"] = [_marked(trainer, row) for row in _first(trainer.train_dataset, _TRAINED)]
    if rows is None or isinstance(rows, dict) or not len(rows):
        return found
    was = model.training
    model.eval()
    try:
        with torch.inference_mode():
            if task.name in ("causal-lm", "seq2seq"):
                found["samples"] = [_written(trainer, row, task) for row in _first(rows, _WRITTEN)]
            elif task.name == "question-answering":
                found["samples"] = [_answered(trainer, row) for row in _first(rows, _SHOWN)]
            elif task.name == "token-classification":
                found["samples"] = [_tagged(trainer, row) for row in _first(rows, _SHOWN)]
            elif task.name == "multiple-choice" or problem_type in (None, "single_label_classification"):
                found |= _classified(trainer, rows, task)
    finally:
        model.train(was)
    return found


def _first(rows: Any, count: int) -> list[Any]:
    return [rows[i] for i in range(min(count, len(rows)))]


def _batch(trainer: Any, rows: list[Any]) -> dict[str, Any]:
    """Collated rows on the model's device."""
    device = next(trainer.model.parameters()).device
    return {k: v.to(device) for k, v in trainer.data_collator([dict(r) for r in rows]).items() if hasattr(v, "to")}


def _text(trainer: Any, ids: Any) -> str:
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    tokenizer = trainer.processing_class
    return tokenizer.decode([i for i in ids if i >= 0], skip_special_tokens=True).strip()


# ---------------------------------------------------------------------------------------------------- classes
def _classified(trainer: Any, rows: Any, task: Task) -> dict[str, Any]:
    names = [] if task.name == "multiple-choice" else _names(trainer.model)
    answers: list[tuple[int, int, int, float]] = []  # row, its class, what it was taken for, with which probability
    for start in range(0, min(_COUNTED, len(rows)), 32):
        places = range(start, min(start + 32, _COUNTED, len(rows)))
        batch = _batch(trainer, [rows[i] for i in places])
        labels = batch.pop("labels")
        shares, found = trainer.model(**batch).logits.float().softmax(-1).max(-1)
        answers += zip(places, labels.tolist(), found.tolist(), shares.tolist(), strict=True)
    shown = [_class_row(trainer, rows[i], names, label, found, share) for i, label, found, share in _telling(answers)]
    result: dict[str, Any] = {"samples": shown}
    if names:
        counts = Counter((label, found) for _, label, found, _ in answers)
        result["confusion"] = {"names": names, "counts": [[i, j, n] for (i, j), n in sorted(counts.items())]}
    return result


def _telling(answers: list[tuple[int, int, int, float]]) -> list[tuple[int, int, int, float]]:
    """The rows to show: the surest mistakes, then right answers of as many classes as there is room for."""
    wrong = sorted((a for a in answers if a[1] != a[2]), key=lambda a: -a[3])[: _SHOWN // 2]
    right, seen = [a for a in answers if a[1] == a[2]], Counter[int]()
    turns = []
    for answer in right:
        turns.append((seen[answer[1]], answer))
        seen[answer[1]] += 1
    return [*wrong, *(a for _, a in sorted(turns, key=lambda t: t[0])[: _SHOWN - len(wrong)])]


def _class_row(trainer: Any, row: Any, names: list[str], label: int, found: int, share: float) -> dict[str, Any]:
    ids = row["input_ids"]
    if ids and isinstance(ids[0], list):  # multiple choice: one text a choice
        expected, predicted = _text(trainer, ids[label]), _text(trainer, ids[found])
        return {
            "text": f"choice of {len(ids)}",
            "expected": expected,
            "predicted": predicted,
            "probability": round(share, 4),
        }
    name = (lambda i: names[i]) if names else str
    return {
        "text": _text(trainer, ids),
        "expected": name(label),
        "predicted": name(found),
        "probability": round(share, 4),
    }


def _names(model: Any) -> list[str]:
    found = getattr(model.config, "id2label", None) or {}
    return [str(found[i]) for i in sorted(found)]


# ---------------------------------------------------------------------------------------------------- tokens
def _tagged(trainer: Any, row: Any) -> dict[str, Any]:
    names = _names(trainer.model)
    tags = (
        trainer.model(**{k: v for k, v in _batch(trainer, [row]).items() if k != "labels"})
        .logits.argmax(-1)[0]
        .tolist()
    )
    there = [(i, t, g) for i, t, g in zip(row["input_ids"], tags, row["labels"], strict=False) if g != IGNORED]
    expected = ", ".join(f"{_text(trainer, [i])}: {names[g]}" for i, _, g in there if names[g] != "O")
    predicted = ", ".join(f"{_text(trainer, [i])}: {names[t]}" for i, t, _ in there if names[t] != "O")
    return {
        "text": _text(trainer, row["input_ids"]),
        "expected": expected or "nothing",
        "predicted": predicted or "nothing",
    }


def _answered(trainer: Any, row: Any) -> dict[str, Any]:
    from tunekit.metrics import best_spans

    batch = {k: v for k, v in _batch(trainer, [row]).items() if k not in ("start_positions", "end_positions")}
    made = trainer.model(**batch)
    first, last = best_spans((made.start_logits, made.end_logits), None)[0].tolist()
    ids = row["input_ids"]
    expected = _text(trainer, ids[row["start_positions"] : row["end_positions"] + 1])
    return {
        "text": _short(_text(trainer, ids)),
        "expected": expected,
        "predicted": _text(trainer, ids[first : last + 1]),
    }


# ---------------------------------------------------------------------------------------------------- texts
def _written(trainer: Any, row: Any, task: Task) -> dict[str, Any]:
    """What the model writes to a held-out row, beside what stands there; plain text is cut in half and gone on with."""
    import torch

    ids, labels = list(row["input_ids"]), list(row["labels"])
    if task.name == "causal-lm":
        begin = next((i for i, label in enumerate(labels) if label != IGNORED), 0)
        begin = begin if begin > 1 else max(1, len(ids) // 2)
        ids, labels = ids[:begin], labels[begin:]
    device = next(trainer.model.parameters()).device
    given = torch.tensor([ids], device=device)
    made = trainer.model.generate(
        input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=_NEW_TOKENS, do_sample=False, pad_token_id=trainer.processing_class.pad_token_id
    )  # fmt: skip
    new = made[0][len(ids) :] if task.name == "causal-lm" else made[0]
    return {"text": _short(_text(trainer, ids)), "expected": _text(trainer, labels), "predicted": _text(trainer, new)}


def _short(text: str) -> str:
    return text if len(text) <= _PROMPT else f"{text[: _PROMPT // 2]} ... {text[-_PROMPT // 2 :]}"


def _marked(trainer: Any, row: Any) -> list[dict[str, Any]]:
    return [{"text": trainer.processing_class.decode(ids), "trained": on} for on, ids in _stretches(row)]


def _stretches(row: Any) -> Iterator[tuple[bool, list[int]]]:
    """The row's tokens in stretches that the loss counts, and those that it does not."""
    on, ids = False, list[int]()
    for token, label in zip(row["input_ids"], row["labels"], strict=False):
        if (label != IGNORED) != on and ids:
            yield on, ids
            ids = []
        on = label != IGNORED
        ids.append(token)
    if ids:
        yield on, ids
