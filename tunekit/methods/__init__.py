"""The fine-tuning methods, one a file; `tunekit.methods.Lora` loads the file that defines it."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from tunekit.discovery import by_class_name

    return by_class_name("method", name)


def __dir__() -> list[str]:
    from tunekit.discovery import everything

    return sorted(cls.__name__ for cls in everything("method").values())
