"""The objectives, one a file; `tunekit.objectives.Supervised` loads the file that defines it."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from tunekit.discovery import by_class_name

    return by_class_name("objective", name)


def __dir__() -> list[str]:
    from tunekit.discovery import everything

    return sorted(cls.__name__ for cls in everything("objective").values())
