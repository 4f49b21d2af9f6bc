"""A Trainer's checkpoint, whole or not there: written aside, flushed to the disk, renamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunekit.checkpoint import flush, last_checkpoint, seal
from tunekit.errors import RunError
from tunekit.finding import error

ASIDE = ".saving"
"""The folder in the output folder that a checkpoint is written into; no resumption looks there."""
_DISK = ("PytorchStreamWriter", "iostream", "inline_container", "No space left", "I/O error")
"""How torch and safetensors say that a file could not be written."""


def save_atomically(trainer: Any, folder: Path, write: Callable[[Path], None]) -> None:
    """Lets the host write a checkpoint aside and puts it in its place when it is whole and on the disk.

    Args:
        trainer: The Trainer, for its state, its arguments and its processes.
        folder: The folder that checkpoints lie in.
        write: The host's own saving, into a folder of its choice below the one it is given.

    Raises:
        RunError: `checkpoint-write`; nothing half-written is left, and what was saved before is still there.
    """
    aside, main = folder / ASIDE, trainer.args.should_save
    wait = trainer.accelerator.wait_for_everyone
    if main:
        shutil.rmtree(aside, ignore_errors=True)
    wait()
    try:
        write(aside)
        wait()
        name = f"checkpoint-{trainer.state.global_step}"
        _point_to_place(trainer, aside / name, folder / name)
        if main:
            seal(aside / name, num_processes=trainer.args.world_size, global_step=trainer.state.global_step)
            put_in_place(aside / name, folder / name)
            shutil.rmtree(aside, ignore_errors=True)
    except Exception as e:
        if main:
            shutil.rmtree(aside, ignore_errors=True)
        if is_of_the_disk(e):
            raise _unwritten(f"checkpoint at step {trainer.state.global_step}", folder, e) from e
        raise
    wait()


@contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """What is written at the end of a run: a disk that is full is one clear error.

    Raises:
        RunError: `checkpoint-write`.
    """
    try:
        yield
    except Exception as e:
        if is_of_the_disk(e):
            raise _unwritten("what was learnt", Path(folder), e) from e
        raise


def is_of_the_disk(e: BaseException) -> bool:
    """Whether an error says that a file could not be written; safetensors' and torch's are no `OSError`.

    Example:
        >>> is_of_the_disk(RuntimeError("basic_ios::clear: iostream error")), is_of_the_disk(RuntimeError("shapes"))
        (True, False)
    """
    return isinstance(e, OSError) or any(text in str(e) for text in _DISK)


def _point_to_place(trainer: Any, aside: Path, place: Path) -> None:
    """The host takes down where the best checkpoint lies: where it will lie, and not where it was written."""
    if trainer.state.best_model_checkpoint == str(aside):
        trainer.state.best_model_checkpoint = str(place)
        if trainer.args.should_save:
            trainer.state.save_to_json(str(aside / "trainer_state.json"))


def put_in_place(aside: Path, place: Path) -> None:
    """Renames a folder over another one; at no moment is a part of either in place."""
    replaced = aside.with_name(f"{place.name}.replaced")
    if place.exists():
        place.rename(replaced)
    aside.rename(place)
    flush(place.parent)


def lost_worker(e: RuntimeError, folder: str | Path | None) -> RunError | None:
    """Torch's error of a loader process that is gone, in words; None for any other."""
    if "DataLoader worker" not in str(e):
        return None
    return RunError(
        error(
            "loader-worker", str(e).splitlines()[0][:200], f"a process that reads rows was ended from outside, often for want of memory; {_kept(folder or '.')}",
            "lower `dataloader_num_workers` or free memory, and resume",
        )
    )  # fmt: skip


def _kept(folder: str | Path) -> str:
    last = last_checkpoint(folder)
    return f"the last whole checkpoint is {Path(last).name!r}" if last else "there is no checkpoint yet"


def _unwritten(what: str, folder: Path, e: Exception) -> RunError:
    return RunError(
        error(
            "checkpoint-write", f"{what} in {folder.name!r}",
            f"it could not be written ({e}); {_kept(folder)}", "make room or make the folder writable, and resume",
        )
    )  # fmt: skip
