"""Methods that name or count blocks: what they do to a shallow copy says nothing of the whole model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NUMBER = re.compile(r"(?<![A-Za-z0-9_])\d|\[\d|\|\d")
"""A number that stands by itself, as in `layers.5.q_proj` or `layer.1[01].attention`, not one within a name such as `fc1`."""
_OTHER_TEXTS = ("version", "_or_path", "revision", "kind", "schema", "init_text")
"""Ends of the names of settings whose text names no module."""


def names_blocks(setting: Any, name: str = "") -> bool:
    """Whether any setting of a method says which blocks it means.

    Args:
        setting: The method as plain values, or a part of it.
        name: What the part is called.

    Example:
        >>> names_blocks({"layers_to_transform": [0, 5]}), names_blocks({"target_modules": ["fc1", "q_proj"]})
        (True, False)
        >>> names_blocks({"target_modules": "model.layers.1[0-9].mlp"}), names_blocks({"rank_pattern": {"layers.0.q_proj": 16}})
        (True, True)
    """
    if name.endswith(_OTHER_TEXTS):
        return False
    if isinstance(setting, Mapping):
        return any(names_blocks(str(key)) or names_blocks(value, str(key)) for key, value in setting.items())
    if isinstance(setting, str):
        return _NUMBER.search(setting) is not None
    if isinstance(setting, list | tuple | set | frozenset):
        return any(names_blocks(value, name) for value in setting)
    return type(setting) is int and name in _LISTS


def counts_blocks(setting: Any, name: str = "") -> bool:
    """Whether any setting of a method says how many blocks it means.

    Example:
        >>> counts_blocks({"last_layers": 4}), counts_blocks({"last_layers": None, "r": 8})
        (True, False)
    """
    if isinstance(setting, Mapping):
        return any(counts_blocks(value, str(key)) for key, value in setting.items())
    return type(setting) is int and name.endswith("layers")


_LISTS = ("layers_to_transform", "layer_replication", "leave_out")
"""Settings that are, or list, numbers of blocks."""
