"""Work that all processes of a machine need, done by one of them before any of them can wait for another in a process group."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_calls = 0
_LOOK_SECONDS = 0.1


def once_a_machine(write: Callable[[Path], None]) -> Path | None:
    """A folder that the first process of this machine wrote; None where it failed, or where there is one process only.

    The others look for it on the disk, however long it takes: a collective operation would run into its time-out. A first
    process that dies is noticed by the launcher, which ends the others. Every process calls this equally often.

    Args:
        write: Fills the folder; called in the first process only.

    Raises:
        Exception: what `write` raised, in the first process; the others then get None and do the work to say the same.
    """
    global _calls
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1:
        return None
    _calls += 1
    # All processes of a machine have the launcher for a parent.
    place = (
        Path(tempfile.gettempdir())
        / f"tunekit-{getattr(os, 'getuid', int)()}-{os.getppid()}-{os.environ.get('MASTER_PORT', '0')}-{_calls}"
    )
    done, failed = place / "done", place / "failed"
    if os.environ.get("LOCAL_RANK") != "0":
        while not done.exists() and not failed.exists():
            time.sleep(_LOOK_SECONDS)
        return place if done.exists() else None
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    try:
        write(place)
    except BaseException:
        failed.touch()
        raise
    done.touch()
    return place
