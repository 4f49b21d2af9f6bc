"""The answers of a frozen part, one stretch of tokens a row, in memory or in a mapped file by their size."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import UnsupportedError
from tunekit.finding import error

if TYPE_CHECKING:
    import torch

_READ = ("input_ids", "token_type_ids", "position_ids")
"""Columns that a frozen part reads; two rows alike in them get the same answer."""

MEMORY_SHARE = 0.25
"""How much of the memory that is free the answers may take; what is larger goes into a file."""
DISK_SHARE = 0.9


def sequences(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sequences of a row: itself, or each of its choices."""
    columns = {name: row[name] for name in _READ if row.get(name) is not None}
    ids = columns["input_ids"]
    if len(ids) == 0 or isinstance(ids[0], int) or getattr(ids[0], "ndim", 1) == 0:
        return [columns]
    return [{name: value[i] for name, value in columns.items()} for i in range(len(ids))]


def key_of(sequence: Mapping[str, Any]) -> bytes:
    """The digest of what a frozen part reads of a sequence, and of nothing else.

    Example:
        >>> key_of({"input_ids": [1, 2]}) == key_of({"input_ids": (1, 2)}) != key_of({"input_ids": [1, 2, 2]})
        True
    """
    import numpy as np

    found = hashlib.blake2b(digest_size=16)
    for name in sorted(sequence):
        found.update(name.encode())
        found.update(np.asarray(sequence[name], dtype=np.int64).tobytes())
    return found.digest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where each sequence's stretch lies: sequences alike in what they say share one.

    Example:
        >>> layout = Layout.of([{"input_ids": [1, 2]}, {"input_ids": [3]}, {"input_ids": [1, 2]}])
        >>> layout.tokens, len(layout.places)
        (3, 2)
    """

    places: Mapping[bytes, tuple[int, int]] = field(repr=False)
    """Digest of a sequence to the first token of its stretch and its length."""
    tokens: int

    @staticmethod
    def of(rows: Iterable[Mapping[str, Any]]) -> Layout:
        """The layout of rows, in their order."""
        places: dict[bytes, tuple[int, int]] = {}
        tokens = 0
        for row in rows:
            for sequence in sequences(row):
                length = len(sequence["input_ids"])
                if places.setdefault(key_of(sequence), (tokens, length)) == (tokens, length):
                    tokens += length
        return Layout(places=places, tokens=tokens)

    def digest(self) -> str:
        """The digest of all sequences in their order."""
        return hashlib.blake2b(b"".join(self.places), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """Answers by sequence, (tokens of all sequences, width)."""

    layout: Layout
    values: torch.Tensor = field(repr=False)
    file: Path | None
    """The mapped file; None in memory."""

    def batch(self, rows: Sequence[Mapping[str, Any]], mask: torch.Tensor) -> torch.Tensor | None:
        """The answers for a batch, zero where it is padded; None where a row is not among those that are kept.

        Args:
            rows: What was collated.
            mask: Its attention mask, (rows, tokens) or (rows, choices, tokens).
        """
        places = [self.layout.places.get(key_of(s)) for row in rows for s in sequences(row)]
        found = self.values.new_zeros((*mask.shape, self.values.shape[-1]))
        flat, starts = found.flatten(0, -3), mask.flatten(0, -2).argmax(-1).tolist()
        for line, place, start in zip(flat, places, starts, strict=True):
            if place is None:
                return None
            line[start : start + place[1]] = self.values[place[0] : place[0] + place[1]]
        return found

    def put(self, keys: Iterable[bytes], hidden: torch.Tensor, mask: torch.Tensor) -> None:
        """Keeps what the frozen part said of sequences.

        Args:
            keys: Digests of the sequences of the batch, in order.
            hidden: (sequences, tokens, width).
            mask: (sequences, tokens).
        """
        for key, line, start in zip(keys, hidden, mask.argmax(-1).tolist(), strict=True):
            at, length = self.layout.places[key]
            self.values[at : at + length] = line[start : start + length]


def open_store(
    layout: Layout,
    width: int,
    dtype: torch.dtype,
    folder: Path,
    name: str,
    free_memory: int,
    free_disk: int | None = None,
) -> tuple[Store, bool]:
    """A store of the right size, and whether it holds its answers already.

    Args:
        layout: What it is for.
        width: Numbers a token.
        dtype: Of the numbers.
        folder: Where a file would lie.
        name: Digest of everything the answers depend on: a file of this name holds the same answers.
        free_memory: Bytes of memory that are free.
        free_disk: Bytes that are free in `folder`; None: they are asked for.

    Raises:
        UnsupportedError: `activations-size`, where neither memory nor the disk has room.
    """
    import torch

    needed = size_bytes(layout, width, dtype)
    if needed <= MEMORY_SHARE * free_memory:
        values = torch.empty(layout.tokens, width, dtype=dtype)
        return Store(layout=layout, values=values, file=None), False
    whole, begun = folder / f"{name}.bin", folder / f"{name}.bin.writing"
    if whole.is_file() and whole.stat().st_size == needed:
        return Store(layout=layout, values=_mapped(whole, layout, width, dtype), file=whole), True
    room = shutil.disk_usage(_existing(folder)).free if free_disk is None else free_disk
    if needed > DISK_SHARE * room:
        seen = f"{layout.tokens:,} tokens of frozen activations, {in_words(needed)}"
        why = f"memory has {in_words(free_memory)} free and {str(folder)!r} {in_words(room)}"
        fix = "set `frozen_activations: recomputed`, an `output_dir` on a larger disk, or a smaller `max_length`"
        raise UnsupportedError(error("activations-size", seen, why, fix))
    folder.mkdir(parents=True, exist_ok=True)
    return Store(layout=layout, values=_mapped(begun, layout, width, dtype), file=begun), False


def finished(store: Store) -> Store:
    """The store once all of it is written: a file gets the name under which it is found again."""
    if store.file is None or store.file.suffix != ".writing":
        return store
    whole = store.file.with_suffix("")
    os.replace(store.file, whole)  # the map stays: it is of the file, not of its name
    return Store(layout=store.layout, values=store.values, file=whole)


def size_bytes(layout: Layout, width: int, dtype: torch.dtype) -> int:
    """What the answers take."""
    return layout.tokens * width * dtype.itemsize


def in_words(amount: int) -> str:
    """Bytes in print."""
    return f"{amount / 2**30:.2f} GiB" if amount >= 2**30 else f"{amount / 2**20:.1f} MiB"


def _mapped(path: Path, layout: Layout, width: int, dtype: torch.dtype) -> torch.Tensor:
    import torch

    flat = torch.from_file(str(path), shared=True, size=layout.tokens * width, dtype=dtype)
    return flat.view(layout.tokens, width)


def _existing(folder: Path) -> Path:
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices of rows in batches of like length, the longest first, so that what does not fit fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for at in range(0, len(order), size):
        yield order[at : at + size]
