"""Finds methods, objectives, rules and callbacks: one class a file, and what other packages register by entry point."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from tunekit.errors import InvalidError
from tunekit.finding import error, nearest

PACKAGES = {
    "method": "tunekit.methods",
    "objective": "tunekit.objectives",
    "rule": "tunekit.advisor.rules",
    "callback": "tunekit.callbacks",
    "check": "tunekit.preflight",
}


@cache
def _files(kind: str) -> tuple[str, ...]:
    """Slugs of this kind by file name, in alphabetical order."""
    package = importlib.import_module(PACKAGES[kind])
    return tuple(sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")))


@cache
def _entry_points(kind: str) -> dict[str, Any]:
    """Entry points of this kind by name. Slow (it reads every installed distribution), so asked for last."""
    from importlib.metadata import entry_points

    return {e.name: e for e in entry_points(group=PACKAGES[kind])}


def slugs(kind: str) -> tuple[str, ...]:
    """Every known slug of a kind."""
    return tuple(sorted({*_files(kind), *_entry_points(kind)}))


@cache
def find(kind: str, slug: str) -> Any:
    """The object of this kind and slug: for a file, the public thing that the file defines.

    Args:
        kind: `method`, `objective`, `rule`, `callback` or `check`.
        slug: Its name, such as `lora`.

    Raises:
        InvalidError: `method-unknown` (and so on), naming the nearest.
    """
    if slug in _files(kind):
        return _public(importlib.import_module(f"{PACKAGES[kind]}.{slug.replace('-', '_')}"), slug)
    if slug in _entry_points(kind):
        return _entry_points(kind)[slug].load()
    raise InvalidError(error(f"{kind}-unknown", f"{kind} {slug!r}", f"no such {kind}", nearest(slug, slugs(kind))))


def _public(module: Any, slug: str) -> Any:
    """The one thing in a module whose `slug` is the file's; a class defined there without a slug counts by being alone."""
    named = [v for v in vars(module).values() if getattr(v, "slug", None) == slug]
    if named:
        return named[0]
    classes = [
        v for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__ and not n.startswith("_")
    ]
    assert len(classes) == 1, f"{module.__name__} must define one public class, got {classes}"
    return classes[0]


def everything(kind: str) -> dict[str, Any]:
    """All of a kind by slug."""
    return {slug: find(kind, slug) for slug in slugs(kind)}
