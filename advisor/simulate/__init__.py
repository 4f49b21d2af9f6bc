"""Workload and Plan to predicted memory and time: the real code on weightless tensors."""

from __future__ import annotations

from typing import Any

__all__ = ["estimate_memory", "estimate_time", "screen", "simulate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tunekit.advisor.simulate import estimate

    return getattr(estimate, name)
