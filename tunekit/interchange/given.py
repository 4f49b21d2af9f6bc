"""The values of another tool's file, taken one by one, so that what nobody took can be said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunekit.finding import Finding, note, warning


class Given:
    """A file's values while they are carried over into a plan.

    Example:
        >>> given = Given({"learning_rate": 1e-4, "galore": True, "wandb_project": "x"})
        >>> given.take("learning_rate")
        0.0001
        >>> given.ignore(["wandb_project"], "it changes nothing that is learnt")
        >>> [f.code for f in given.closing()]
        ['import-left-out', 'import-ignored']
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._left = {str(k): v for k, v in values.items()}
        self._ignored: dict[str, list[str]] = {}
        self.findings: list[Finding] = []

    def take(self, *names: str, default: Any = None) -> Any:
        """The value of the first of these names that is there and not null; all of them count as taken."""
        found = [v for v in (self._left.pop(name, None) for name in names) if v is not None]
        return found[0] if found else default

    def ignore(self, names: Iterable[str], why: str) -> None:
        """Takes what has no bearing on what is learnt."""
        self._ignored.setdefault(why, []).extend(n for n in names if self._left.pop(n, None) is not None)

    def lost(self, seen: str, why: str, fix: str) -> None:
        """Notes something that could not be carried over."""
        self.findings.append(warning("import-left-out", seen, why, fix))

    def assumed(self, seen: str, why: str, fix: str = "") -> None:
        """Notes what a plan says in another way than the file did."""
        self.findings.append(note("import-assumed", seen, why, fix))

    def closing(self) -> list[Finding]:
        """Everything that was said, and what nobody took."""
        rest = {k: v for k, v in self._left.items() if v not in (None, False, "", [], {})}
        left = [
            warning("import-left-out", f"`{k}: {_short(v)}`", "a plan has nothing that it could become", "set it by hand where it matters")
            for k, v in rest.items()
        ]  # fmt: skip
        ignored = [
            note("import-ignored", ", ".join(f"`{n}`" for n in names), why)
            for why, names in self._ignored.items()
            if names
        ]
        return [*self.findings, *left, *ignored]


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
