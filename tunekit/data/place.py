"""Place: where rows that are made on the way are kept."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

_IN_MEMORY_BYTES = 2 * 2**30


def place(dataset: datasets.Dataset) -> dict[str, Any]:
    """Where `map` puts its rows: in memory, or, for large data, in a folder that goes away with the process."""
    if (dataset.size_in_bytes or dataset.data.nbytes) < _IN_MEMORY_BYTES:
        return {"keep_in_memory": True}
    folder = tempfile.mkdtemp(prefix="tunekit-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"cache_file_name": os.path.join(folder, "rows.arrow")}
