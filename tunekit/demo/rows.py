"""The bundled rows: a few-shot subset of banking77 (see ATTRIBUTION.md beside them)."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

SENTENCES = (
    "It has been two weeks and the card you sent me is still not here.",
    "I typed the wrong number three times and now my PIN does not work.",
    "Can I pay with my phone instead of the plastic?",
    "Why did the shop take the money from me two times?",
    "My wallet is gone, please stop the card before somebody uses it.",
)
"""Sentences of our own that no split holds."""


def folder() -> Path:
    """Where the rows lie: `train.jsonl`, `validation.jsonl` and `test.jsonl`."""
    return Path(str(resources.files("tunekit.demo")))


def read(split: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a split.

    Example:
        >>> texts, labels = read("train")
        >>> len(texts), len(set(labels))
        (770, 77)
    """
    lines = (folder() / f"{split}.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [r["text"] for r in rows], [r["label"] for r in rows]
