"""Check: the contract of a preflight check; inspect: all of them on one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tunekit.finding import Finding, note
from tunekit.preflight._subject import Subject

_ORDER = ("error", "warning", "note")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One concept that a run can get wrong. A file of `tunekit/preflight` defines one, under the file's name as slug."""

    slug: str
    """Stable name; equal to the file's name with hyphens."""
    title: str
    """One line: what it looks for."""
    codes: tuple[str, ...]
    """Every code that its findings can carry."""
    look: Callable[[Subject], Iterable[Finding]]
    """Reads the subject and changes nothing."""


def inspect(subject: Subject) -> tuple[Finding, ...]:
    """Every finding of every check, errors first.

    A check that fails by itself is a note, `check-failed`: it must not keep a run from starting.
    """
    from tunekit.discovery import everything

    found: list[Finding] = []
    for slug, check in everything("check").items():
        try:
            found += check.look(subject)
        except Exception as e:
            found.append(note("check-failed", f"check `{slug}`", f"{type(e).__name__}: {e}", "please report it"))
    return tuple(sorted(found, key=lambda f: _ORDER.index(f.severity)))
