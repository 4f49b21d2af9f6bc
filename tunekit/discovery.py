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
    names = (m.name for m in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(name.replace("_", "-") for name in names if not name.startswith("_")))


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
        InvalidError: `method-unknown` (and so on), naming the nearest; `method-plugin-broken` where another package
            registers it and it cannot be loaded.
    """
    if slug in _files(kind):
        return _public(importlib.import_module(f"{PACKAGES[kind]}.{slug.replace('-', '_')}"), slug)
    if slug in _entry_points(kind):
        return _load(kind, _entry_points(kind)[slug])
    raise InvalidError(error(f"{kind}-unknown", f"{kind} {slug!r}", f"no such {kind}", nearest(slug, slugs(kind))))


def _load(kind: str, entry: Any) -> Any:
    """What an entry point names; whatever goes wrong there is told with the distribution that is to blame."""
    try:
        return entry.load()
    except Exception as e:
        owner = entry.dist.name if entry.dist else "an unknown distribution"
        raise InvalidError(
            error(
                f"{kind}-plugin-broken",
                f"{kind} {entry.name!r} of the package {owner}",
                f"`{entry.value}` cannot be loaded ({type(e).__name__}: {e})",
                f"upgrade {owner}, or `pip uninstall {owner}`",
            )
        ) from e


def _public(module: Any, slug: str) -> Any:
    """The one thing in a module whose `slug` is the file's; a class defined there without a slug counts by being alone."""
    named = [v for v in vars(module).values() if getattr(v, "slug", None) == slug]
    if named:
        return named[0]
    own = (v for v in vars(module).values() if inspect.isclass(v) and v.__module__ == module.__name__)
    classes = [v for v in own if not v.__name__.startswith("_")]
    assert len(classes) == 1, f"{module.__name__} must define one public class, got {classes}"
    return classes[0]


def everything(kind: str) -> dict[str, Any]:
    """All of a kind by slug."""
    return {slug: find(kind, slug) for slug in slugs(kind)}


def by_class_name(kind: str, name: str) -> Any:
    """The class of this name, which `tunekit.methods.Lora` and the like stand for; ours are looked through first.

    Raises:
        AttributeError: no such class, as the package it is asked of would say.
    """
    if not name.startswith("_"):
        for known in (_files, _entry_points):
            for slug in known(kind):
                if getattr(find(kind, slug), "__name__", None) == name:
                    return find(kind, slug)
    raise AttributeError(f"module {PACKAGES[kind]!r} has no attribute {name!r}")
