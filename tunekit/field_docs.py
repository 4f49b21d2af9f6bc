"""What the fields of a dataclass mean: type, default, and the string that stands under each in the source, the only copy."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from typing import Any

from tunekit.fields import describe, hints, to_plain


def settings_of(cls: Any) -> dict[str, dict[str, Any]]:
    """Type, default and documentation of every field of a dataclass, the documentation read off its source.

    Example:
        >>> from tunekit.plan import DataSpec
        >>> settings_of(DataSpec)["eval_path"]
        {'type': 'a text or null', 'default': None, 'text': 'A file of its own for evaluation.'}
    """
    if not dataclasses.is_dataclass(cls):
        return {}
    kind: Any = cls
    docs = {k: v for base in reversed(kind.__mro__) if base is not object for k, v in _field_docs(base).items()}
    known, found = hints(kind), {}
    for f in dataclasses.fields(kind):
        if not f.init:
            continue
        found[f.name] = {"type": describe(known[f.name])}
        if f.default is not dataclasses.MISSING:
            found[f.name]["default"] = to_plain(f.default)
        elif f.default_factory is not dataclasses.MISSING:
            found[f.name]["default"] = to_plain(f.default_factory())
        found[f.name]["text"] = docs.get(f.name, "")
    return found


def _field_docs(cls: Any) -> dict[str, str]:
    """The string that stands under each annotated field in the source of one class."""
    try:
        tree = ast.parse(inspect.cleandoc(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    return {
        a.target.id: inspect.cleandoc(b.value.value)
        for a, b in itertools.pairwise(body)
        if isinstance(a, ast.AnnAssign)
        and isinstance(a.target, ast.Name)
        and isinstance(b, ast.Expr)
        and isinstance(b.value, ast.Constant)
        and isinstance(b.value.value, str)
    }
