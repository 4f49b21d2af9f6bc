"""A Subject read off a Trainer, or off what a callback is given; nothing of the run is changed by reading."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tunekit.preflight._digest import digest
from tunekit.preflight._subject import Row, Subject
from tunekit.preflight.resumption import checkpoint_of

_ROWS, _TRAIN_KEYS, _EVAL_KEYS = 256, 20_000, 5_000
_LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")


def of_trainer(trainer: Any, **facts: Any) -> Subject:
    """What a Trainer, Seq2SeqTrainer or TRL trainer is about to run.

    Args:
        trainer: Any child of `transformers.Trainer`; neither run nor changed.
        **facts: Further fields of Subject, such as `memory`.
    """
    args, collate = trainer.args, collator_of(trainer)
    return _subject(
        trainer.train_dataset,
        trainer.eval_dataset,
        collate,
        model=trainer.model,
        args=args,
        tokenizer=_tokenizer(trainer.processing_class),
        optimizer=trainer.optimizer,
        keeps_logits=bool(trainer.compute_metrics)
        and trainer.preprocess_logits_for_metrics is None
        and not args.prediction_loss_only
        and not getattr(args, "predict_with_generate", False)
        and not args.batch_eval_metrics,
        resumes_from=checkpoint_of(args),
        takes_loss_arguments=bool(trainer.model_accepts_loss_kwargs or trainer.compute_loss_func),
        **facts,
    )


def of_events(args: Any, state: Any, **given: Any) -> Subject:
    """What a callback is given when training begins: no collator's settings, no metrics, but the rows and the optimizer."""
    loader, evaluation = given.get("train_dataloader"), given.get("eval_dataloader")
    return _subject(
        getattr(loader, "dataset", None),
        getattr(evaluation, "dataset", None),
        getattr(loader, "collate_fn", None),
        model=given["model"],
        args=args,
        tokenizer=_tokenizer(given.get("processing_class")),
        optimizer=given.get("optimizer"),
        begins=state.global_step == 0,
        resumes_from=checkpoint_of(args, state.global_step) if state.global_step else None,
    )


def _subject(train: Any, evaluation: Any, collate: Callable | None, **fields: Any) -> Subject:
    with untouched_random_numbers():
        evaluation = next(iter(evaluation.values()), None) if type(evaluation) is dict else evaluation
        raw = tuple(_rows(train, _ROWS))
        rows = tuple(_row(collate, r) for r in raw) if collate else ()
        return Subject(
            train=tuple(r for r in rows if r is not None),
            batch=_batch(collate, raw, rows) if collate else None,
            raw=tuple(r for r in raw if isinstance(r, Mapping)),
            num_train=_length(train),
            num_eval=_length(evaluation),
            train_keys=tuple(_key(r) for r in _rows(train, _TRAIN_KEYS)),
            eval_keys=tuple(_key(r) for r in _rows(evaluation, _EVAL_KEYS)),
            class_names=_class_names(train),
            fingerprint=digest(train) if fields.get("resumes_from") is not None else None,
            **fields,
        )


@contextmanager
def untouched_random_numbers() -> Iterator[None]:
    """Rows and collators may draw random numbers; the run must not notice."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def collator_of(trainer: Any) -> Callable:
    """The collator as the Trainer calls it: without the columns that the model does not take."""
    remove = getattr(trainer, "_get_collator_with_removed_columns", None)
    return remove(trainer.data_collator) if remove and trainer.args.remove_unused_columns else trainer.data_collator


def _tokenizer(given: Any) -> Any:
    """The tokenizer, out of a processor."""
    return getattr(given, "tokenizer", given)


def _length(rows: Any) -> int | None:
    try:
        return len(rows)
    except (TypeError, NotImplementedError):
        return None


def _rows(dataset: Any, most: int) -> Iterator[Any]:
    """Up to so many rows, drawn; none of a stream, which can be read only once.

    Drawn, not evenly spaced: rows often come in a pattern (labels in turns), and every second one has half of it.
    """
    count = _length(dataset)
    if not count or not hasattr(dataset, "__getitem__"):
        return
    for index in sorted(random.Random(0).sample(range(count), min(count, most))):
        yield dataset[index]


def _row(collate: Callable, raw: Any) -> Row | None:
    """A row as the model sees it; None where the collator takes no single row."""
    try:
        made = collate([dict(raw) if isinstance(raw, Mapping) else raw])
        return _plain(made)
    except Exception:
        return None


def _plain(made: Mapping[str, Any]) -> Row | None:
    ids = made.get("input_ids")
    if ids is None or ids.ndim != 2 or len(ids) != 1:
        return None
    mask = made.get("attention_mask")
    seen = mask[0].bool() if mask is not None and mask.shape == ids.shape else ids[0] == ids[0]
    labels = made.get("labels")
    if labels is not None:
        labels = labels[0]
        labels = labels[seen] if labels.shape == seen.shape else labels
        labels = tuple(labels.tolist()) if labels.ndim == 1 else labels.item() if labels.ndim == 0 else None
    return Row(ids=tuple(ids[0][seen].tolist()), labels=labels)


def _batch(collate: Callable, raw: Sequence[Any], rows: Sequence[Row | None]) -> Mapping[str, Any] | None:
    """The shortest and the longest row in one batch."""
    known = [(len(r.ids), i) for i, r in enumerate(rows) if r is not None]
    if not known:
        return None
    picked = [raw[min(known)[1]], raw[max(known)[1]]]
    try:
        return collate([dict(r) if isinstance(r, Mapping) else r for r in picked])
    except Exception:
        return None


def _key(raw: Any) -> int:
    """A digest of a row's input, its label left out."""
    if not isinstance(raw, Mapping):
        return hash(repr(raw))
    if "input_ids" in raw:
        return hash(("input_ids", repr(_list(raw["input_ids"])), repr(raw.get("pixel_values"))))
    return hash(repr(sorted((k, _list(v)) for k, v in raw.items() if k not in _LABELS)))


def _list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _class_names(dataset: Any) -> tuple[str, ...]:
    features = getattr(dataset, "features", None) or {}
    for name in ("labels", "label"):
        names = getattr(features.get(name), "names", None) if isinstance(features, Mapping) else None
        if names:
            return tuple(names)
    return ()
