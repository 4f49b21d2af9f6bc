"""Digests of what a cache was made of: the encoded rows, the teacher, the tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.data.collate import KEPT

if TYPE_CHECKING:
    import datasets
    import pyarrow
    from torch import nn

_ROWS_AT_ONCE = 10_000
_WHOLE_BYTES = 64 * 2**20
"""Files up to this size are read whole; of larger ones evenly spread stretches."""
_STRETCH_BYTES, _STRETCHES = 2**16, 256
_VALUES = 256
"""Values that are read of each tensor of a live teacher, evenly spread."""


def of_rows(dataset: datasets.Dataset) -> str:
    """The digest of encoded rows in their order: every number of every column that goes into a batch."""
    found = hashlib.sha256(str(len(dataset)).encode())
    columns = sorted(name for name in dataset.column_names if name in KEPT)
    shaped = dataset.select_columns(columns).with_format("arrow")
    for table in shaped.iter(_ROWS_AT_ONCE):
        for name in columns:
            found.update(name.encode())
            for part in _numbers(table.column(name).combine_chunks()):
                found.update(part)
    return found.hexdigest()[:16]


def _numbers(array: pyarrow.Array) -> Iterator[bytes]:
    """Lengths of lists and the numbers in them, whatever width they are stored in."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array, pa.ChunkedArray):
        for chunk in array.chunks:
            yield from _numbers(chunk)
        return
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        yield np.asarray(pc.list_value_length(array).fill_null(-1), dtype=np.int64).tobytes()
        yield from _numbers(array.flatten())
        return
    kind = np.float64 if pa.types.is_floating(array.type) else np.int64
    yield np.asarray(array.fill_null(-1).to_numpy(zero_copy_only=False)).astype(kind).tobytes()


def of_tokenizer(tokenizer: Any) -> str:
    """The digest of a tokenizer's words and their ids."""
    words = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def of_teacher(name: str | None, revision: str | None, adapter: str | None, given: nn.Module | None) -> str:
    """The digest of a teacher: of its files and its adapter's, of the commit on a hub, or of a live model's weights."""
    found = hashlib.sha256()
    if given is not None:
        _absorb_weights(given, found)
    else:
        folder = Path(str(name)).expanduser()
        if folder.is_dir():
            _absorb_folder(folder, found)
        else:
            found.update(f"{name}@{_commit(str(name), revision)}".encode())
        if adapter is not None:
            _absorb_folder(Path(adapter).expanduser(), found)
    return found.hexdigest()[:16]


def _absorb_folder(folder: Path, found: Any) -> None:
    """Configurations and weights; a tokenizer has a digest of its own."""
    names = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".bin", ".pt") or p.name.endswith("config.json")]  # fmt: skip
    for path in (p for p in names if "tokenizer" not in p.name and p.name != "training_args.bin"):
        size = path.stat().st_size
        found.update(f"{path.name}:{size}".encode())
        with open(path, "rb") as file:
            if size <= _WHOLE_BYTES:
                found.update(file.read())
                continue
            for i in range(_STRETCHES):
                file.seek(i * (size - _STRETCH_BYTES) // (_STRETCHES - 1))
                found.update(file.read(_STRETCH_BYTES))


def _absorb_weights(model: nn.Module, found: Any) -> None:
    """Every tensor's name, shape and some of its values."""
    import torch

    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // _VALUES)][:_VALUES]
        found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        found.update(some.to("cpu", torch.float64).numpy().tobytes())


def _commit(name: str, revision: str | None) -> str:
    """The commit that a hub's name stands for."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    return str(getattr(config, "_commit_hash", None) or revision or "")
