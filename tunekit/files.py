"""Files that are whole or not there: written aside, flushed to the disk, renamed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file so that a reader, or a crash, sees the old one or the new one and never half of it.

    Args:
        path: Where to; missing folders are made.
        text: Written as UTF-8.

    Example:
        >>> import tempfile
        >>> write_text(f"{tempfile.mkdtemp()}/deep/a.txt", "whole").read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Writes strict JSON by `write_text`; what is not finite becomes null, which JSON has no number for.

    Example:
        >>> import tempfile
        >>> write_json(f"{tempfile.mkdtemp()}/a.json", {"loss": float("nan")}).read_text()
        '{\\n  "loss": null\\n}\\n'
    """
    return write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Plain values with tuples as lists and numbers that are not finite as None.

    Example:
        >>> finite({"a": (1.5, float("inf"))})
        {'a': [1.5, None]}
    """
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
