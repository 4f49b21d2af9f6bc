"""What mkdocstrings calls: examples of docstrings are shown as Python, under the one heading by which it knows them."""

from __future__ import annotations

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^(\s*)Example:[ ]*$", re.MULTILINE)


class Examples(griffe.Extension):
    """Takes `Example:` for `Examples:`, which griffe alone reads as a section; the former it would print as quoted text."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _HEADING.sub(r"\1Examples:", obj.docstring.value)
