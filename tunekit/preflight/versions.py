"""Versions that are known to be broken together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata

from tunekit.finding import Finding, warning
from tunekit.preflight._check import Check
from tunekit.preflight._subject import Subject

BROKEN = (
    ("adapters", "1.99", "transformers", "5", "AdapterHub's adapters up to 1.3 imports what transformers 5 no longer has",
     "`pip uninstall adapters` (tunekit reads and writes its folders)"),
    ("peft", "0.18", "transformers", "5", "PEFT before 0.18 imports a cache class that transformers 5 no longer has", "`pip install -U peft`"),
    ("accelerate", "1.1", "transformers", "5", "the Trainer of transformers 5 asks for accelerate 1.1", "`pip install -U accelerate`"),
    ("bitsandbytes", "0.46.1", "transformers", "5", "transformers 5 refuses to quantise with an older bitsandbytes", "`pip install -U bitsandbytes`"),
    ("transformers", "5.1.1", "transformers", "5.1.0", "transformers 5.1.0 breaks TRL's trainers under DeepSpeed (TRL excludes it)", "`pip install -U transformers`"),
)  # fmt: skip
"""Package below a version, with another from a version: why, and the way out."""


def _look(subject: Subject) -> Iterator[Finding]:
    yield from broken({d: v for pair in BROKEN for d in (pair[0], pair[2]) if (v := _version(d))})


def broken(installed: Mapping[str, str]) -> Iterator[Finding]:
    """Findings for a set of installed versions.

    Example:
        >>> [f.code for f in broken({"adapters": "1.3.0", "transformers": "5.23.0"})]
        ['versions-broken']
    """
    for one, below, other, since, why, fix in BROKEN:
        a, b = installed.get(one), installed.get(other)
        if a and b and _number(a) < _number(below) and _number(b) >= _number(since):
            yield warning("versions-broken", f"{one} {a} with {other} {b}", why, fix)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(p) for p in version.split(".") if p.isdigit())


CHECK = Check(slug="versions", title="Versions known to be broken together.", codes=("versions-broken",), look=_look)
