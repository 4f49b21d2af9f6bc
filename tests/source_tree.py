"""The source tree as the tests of its shape see it: every module under the name it is imported by."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"tunekit": "tunekit", "advisor": "tunekit.advisor", "callbacks": "tunekit.callbacks"}
"""Top-level folder to the package it is on import."""


def modules() -> dict[str, Path]:
    """Dotted name to file of every module, packages by the name of the folder."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *inner]).removesuffix(".__init__")] = path
    return found
