"""Checkpoints that can be trusted: which one is whole, which is torn, and a manifest that says what belongs to one."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

from tunekit.errors import UnsupportedError
from tunekit.files import write_json
from tunekit.finding import error

MANIFEST = "tunekit-manifest.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")
_ZIPPED = (".pt", ".pth", ".bin")
_MOST_HEADER_BYTES = 100_000_000
"""What safetensors itself accepts."""


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint of a Trainer's output folder, ours or anybody's; a torn one is stepped over.

    A run that is killed while it saves leaves a folder that `transformers` takes for the newest checkpoint, and the
    resumption dies of it. Here every file is looked at, without loading one: named in the manifest where there is one,
    and by its own structure (headers, lengths, directories).

    Args:
        output_dir: The `output_dir` of `TrainingArguments`.

    Returns:
        The folder, for `train(resume_from_checkpoint=...)`; None where there is no whole one.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step, text in ((5, '{"global_step": 5}'), (10, '{"global_st')):
        ...     (folder / f"checkpoint-{step}").mkdir()
        ...     _ = (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
        >>> Path(last_checkpoint(folder)).name
        'checkpoint-5'
    """
    return next((str(p) for p in by_age(output_dir) if not faults(p)), None)


def by_age(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a folder, the newest by step first."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.match(p.name)) and p.is_dir()]
    return [p for _, p in sorted(found, reverse=True)]


def faults(folder: str | Path) -> list[str]:
    """What is wrong with a checkpoint, in words; empty where it is whole.

    Example:
        >>> import tempfile
        >>> faults(tempfile.mkdtemp())
        ['no trainer_state.json']
    """
    folder = Path(folder)
    if not (folder / "trainer_state.json").is_file():
        return ["no trainer_state.json"]
    found = _against_manifest(folder)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            wrong = file_fault(path)
        except OSError as e:
            wrong = f"cannot be read ({e.strerror or e})"
        if wrong:
            found.append(f"{path.relative_to(folder)} {wrong}")
    return found


def file_fault(path: Path) -> str | None:
    """What is wrong with one file by its own structure; None where nothing is, or where its kind is not known."""
    if path.suffix == ".safetensors":
        return _safetensors_fault(path)
    if path.suffix in _ZIPPED:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
        return "is cut short" if path.stat().st_size == 0 or (zipped and not zipfile.is_zipfile(path)) else None
    if path.suffix == ".json":
        return _json_fault(path)
    return None


def _safetensors_fault(path: Path) -> str | None:
    """The header is whole, and the tensors it lists end where the file does."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            return "is cut short"
        try:
            header = json.loads(file.read(length))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return "has no readable header"
    return None if 8 + length + max(ends, default=0) == size else "is cut short"


def _json_fault(path: Path) -> str | None:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return "is no whole JSON"
    shards = value.get("weight_map") if isinstance(value, dict) and path.name.endswith(".index.json") else None
    missing = sorted({n for n in (shards or {}).values() if not (path.parent / str(n)).is_file()})
    return f"names {missing[0]}, which is missing" if missing else None


def _against_manifest(folder: Path) -> list[str]:
    try:
        listed = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
        sizes = {str(k): int(v) for k, v in listed.items()}
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{MANIFEST} cannot be read"]
    return [f"{name} {wrong}" for name, size in sizes.items() if (wrong := _size_fault(folder / name, size))]


def _size_fault(path: Path, size: int) -> str | None:
    if not path.is_file():
        return "is missing"
    return None if path.stat().st_size == size else f"has {path.stat().st_size:,} bytes instead of {size:,}"


def check_ranks(folder: str | Path, num_processes: int, *, divided: bool) -> None:
    """Refuses a checkpoint whose optimizer lies in as many parts as there were processes, for another number of them.

    Args:
        folder: The checkpoint.
        num_processes: Processes that would go on from it.
        divided: Whether the state is divided (DeepSpeed); what DDP and FSDP write is whole.

    Raises:
        UnsupportedError: `resume-ranks`.
    """
    try:
        wrote = json.loads((Path(folder) / MANIFEST).read_text("utf-8")).get("num_processes")
    except (OSError, ValueError, AttributeError):
        return
    if divided and wrote is not None and wrote != num_processes:
        raise UnsupportedError(
            error(
                "resume-ranks", f"checkpoint {Path(folder).name!r} of {wrote} processes with {num_processes}",
                "DeepSpeed writes the optimizer's state in one part a process",
                f"resume on {wrote} processes, or start anew from the weights: `model: {folder}` for full fine-tuning",
            )
        )  # fmt: skip


def seal(folder: str | Path, **facts: Any) -> Path:
    """Flushes every file of a checkpoint to the disk, then writes the manifest that says what belongs to it.

    Args:
        folder: The checkpoint.
        **facts: Plain values to keep beside the list, such as the number of processes.
    """
    folder = Path(folder)
    sizes = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        flush(path)
        sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    written = write_json(folder / MANIFEST, {"schema": 1, **facts, "files": sizes})
    for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        flush(path)
    return written


def flush(path: Path) -> None:
    """Makes the system write a file or a folder to the disk; a folder where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
