"""Frozen activations kept over epochs: each row goes through the frozen part once, before training."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.activation_store import (
    Layout,
    Store,
    batches,
    finished,
    in_words,
    key_of,
    open_store,
    sequences,
    size_bytes,
)
from tunekit.contracts import ACTIVATIONS
from tunekit.errors import UnsupportedError
from tunekit.finding import error
from tunekit.frozen_part import FrozenPart, Supply, frozen_answer, frozen_part, still

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import Trainer

FOLDER = "frozen_activations"
"""Where a file of them lies in the output folder; it goes with the process, unless that is killed."""

_LOG = logging.getLogger(__name__)
_TOLERANCE = {"float32": 1e-4, "float64": 1e-8}
_COARSE = 5e-2
"""Largest difference of answers, relative to the largest answer: rounding, which in 16 bits is coarse."""
_VALUES = 256


def keep_frozen_activations(trainer: Trainer) -> None:
    """Lets a Trainer do without the frozen part of its model: rows of training and evaluation are answered from a store.

    What the store says of a batch travels in the batch, so that shuffling, accumulation, a split batch, evaluation and a
    resumed run need nothing of their own; a row that is not in it goes through the whole model. The frozen part runs in
    evaluation mode, without dropout.

    Args:
        trainer: Before training, with rows that have a length.

    Raises:
        UnsupportedError: what `frozen_part` and `open_store` say; `activations-rows`, for rows that come as a stream or
            hide tokens; `activations-differ`, where the model gives other answers without its frozen part.
    """
    model, part = trainer.model, frozen_part(trainer.model)
    rows = _Rows(trainer)
    inner, answer = trainer.data_collator, _Answering(trainer, part)
    layout = Layout.of(rows)
    if not layout.places:
        return
    hidden, answers, _ = answer([rows[0]])
    store, done = open_store(
        layout, hidden.shape[-1], hidden.dtype, Path(str(trainer.args.output_dir)) / FOLDER, _name(model, part, layout, hidden),
        _free_memory(),
    )  # fmt: skip
    _say(store, part, done)
    if store.file is not None:
        weakref.finalize(trainer, _forget, store.file.parent / f"{store.file.name.partition('.')[0]}.bin")
    if not done:
        _fill(store, rows, answer, trainer.args.eval_batch_size)
        store = finished(store)
    Supply(part, answers).attach(model)
    collate = _Collator(inner, store)
    _check_same(answer, rows, collate)
    trainer.data_collator = collate


class _Collator:
    """A batch, and what the frozen part says of it."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]], store: Store) -> None:
        self.collate = collate
        self.store = store

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.collate(rows))
        hidden = self.store.batch(rows, batch["attention_mask"])
        return batch if hidden is None else {**batch, ACTIVATIONS: hidden}


class _Answering:
    """Asks the frozen part of a Trainer's model about rows, in the Trainer's precision."""

    def __init__(self, trainer: Trainer, part: FrozenPart) -> None:
        self.model: Any = trainer.model
        self.part, self.collate = part, trainer.data_collator
        self.prepare = trainer._prepare_inputs
        args = trainer.args
        self.precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
        self.device = args.device

    def autocast(self) -> Any:
        """The precision of training."""
        import torch

        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.precision))

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Rows on the device, without labels."""
        made = self.prepare(dict(self.collate([dict(row) for row in rows])))
        return {k: v for k, v in made.items() if "label" not in k and not k.endswith("_positions")}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, int, torch.Tensor]:
        """The answers (sequences, tokens, width), the length of a layer's tuple, and the mask (sequences, tokens)."""
        batch = self.batch(rows)
        mask = batch.get("attention_mask")
        lengths = [len(s["input_ids"]) for row in rows for s in sequences(row)]
        if mask is None or mask.flatten(0, -2).sum(-1).tolist() != lengths:
            seen, why = "`frozen_activations: cached` with rows that hide tokens", "only whole rows are kept"
            raise UnsupportedError(error("activations-rows", seen, why, "set `frozen_activations: recomputed`"))
        with self.autocast():
            hidden, answers = frozen_answer(self.model, self.part, batch)
        return hidden, answers, mask.flatten(0, -2)


class _Rows(Sequence[Mapping[str, Any]]):
    """The rows of training and of every evaluation, one after the other, read when they are asked for."""

    def __init__(self, trainer: Trainer) -> None:
        evaluated = trainer.eval_dataset
        sets = [trainer.train_dataset, *(evaluated.values() if isinstance(evaluated, dict) else [evaluated])]
        self.sets: list[Any] = [rows for rows in sets if rows is not None]
        if any(not hasattr(rows, "__len__") for rows in self.sets):
            seen, why = "`frozen_activations: cached` with rows as a stream", "nobody knows how many there will be"
            raise UnsupportedError(error("activations-rows", seen, why, "pass a `datasets.Dataset`"))

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def __getitem__(self, index: Any) -> Any:
        for rows in self.sets:
            if index < len(rows):
                return rows[index]
            index -= len(rows)
        raise IndexError(index)


def _fill(store: Store, rows: _Rows, answer: _Answering, size: int) -> None:
    """Every sequence once."""
    missing = set(store.layout.places)
    chosen, lengths = [], []
    for i, row in enumerate(rows):
        found = {key_of(s): len(s["input_ids"]) for s in sequences(row)}
        if found.keys() & missing:
            chosen.append(i)
            lengths.append(max(found.values()))
            missing -= found.keys()
    for picked in batches(lengths, size):
        some = [rows[chosen[i]] for i in picked]
        hidden, _, mask = answer(some)
        store.put((key_of(s) for row in some for s in sequences(row)), hidden.to("cpu"), mask.to("cpu"))


def _forget(file: Path) -> None:
    file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # other files lie there
        file.parent.rmdir()


def _check_same(answer: _Answering, rows: _Rows, collate: _Collator) -> None:
    """Compares the answers to some rows of different lengths with and without the frozen part.

    A layer may hand on more than hidden states (a bias of positions, the router's choice), be called more than once, or
    read padding; the numbers tell, whatever the architecture.
    """
    import torch

    lengths = [len(row["input_ids"]) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    some = [rows[i] for i in dict.fromkeys((order[0], order[len(order) // 2], order[-1]))]
    plain = answer.batch(some)
    supplied = {**plain, ACTIVATIONS: answer.prepare(collate([dict(row) for row in some]))[ACTIVATIONS]}
    with still(answer.model), torch.no_grad(), answer.autocast():
        wanted, got = answer.model(**plain), answer.model(**supplied)
    off = max(_off(a, b, plain["attention_mask"]) for a, b in zip(wanted.to_tuple(), got.to_tuple(), strict=True) if torch.is_tensor(a))  # fmt: skip
    exact = collate.store.values.dtype if answer.precision is None else None
    if not off <= _TOLERANCE.get(str(exact).removeprefix("torch."), _COARSE):  # what is no number is no answer
        seen = f"answers that differ by {off:.1e} (of the largest) without the {len(answer.part.layers)} frozen layers"
        why = "the layers of this model hand on more than one hidden state a token, or their answers depend on padding"
        raise UnsupportedError(error("activations-differ", seen, why, "set `frozen_activations: recomputed`"))


def _off(wanted: torch.Tensor, got: torch.Tensor, mask: torch.Tensor) -> float:
    """The largest difference over the largest value, padding left out."""
    if wanted.shape[: mask.ndim] == mask.shape:
        wanted, got = wanted[mask.bool()], got[mask.bool()]
    wanted, got = wanted.double(), got.double()
    kept = wanted.isfinite()  # a model may write minus infinity where nothing can be
    return float((wanted - got)[kept].abs().max() / wanted[kept].abs().max().clamp(min=1.0)) if kept.any() else 0.0


def _name(model: nn.Module, part: FrozenPart, layout: Layout, hidden: torch.Tensor) -> str:
    """The digest of what the answers depend on: the rows, the weights below, the form of the numbers."""
    import torch

    frozen = {id(p) for layer in part.layers for p in layer.parameters()}
    found = hashlib.blake2b(f"{layout.digest()} {hidden.shape[-1]} {hidden.dtype}".encode(), digest_size=12)
    for name, p in model.named_parameters():
        if id(p) in frozen or not p.requires_grad:
            flat = p.detach().flatten()
            some = flat[:: max(1, len(flat) // _VALUES)][:_VALUES].to("cpu", torch.float64)
            found.update(name.encode() + some.numpy().tobytes())
    return found.hexdigest()


def _free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _say(store: Store, part: FrozenPart, done: bool) -> None:
    size = in_words(size_bytes(store.layout, store.values.shape[-1], store.values.dtype))
    where = "in memory" if store.file is None else f"in {store.file}"
    _LOG.warning(
        "frozen activations of %d layers below %d: %s rows, %s tokens, %s %s%s", len(part.layers), part.above,
        f"{len(store.layout.places):,}", f"{store.layout.tokens:,}", size, where, ", already there" if done else "",
    )  # fmt: skip
