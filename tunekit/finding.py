"""Finding: the one vocabulary in which rules, checks and errors say what they saw."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Severity = Literal["error", "warning", "note", "favours", "disfavours"]
"""`error` rules a plan out or stops a run; `favours` and `disfavours` move a plan in the ranking; the others inform."""

_CODE = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was seen, why it matters and what to do about it.

    Example:
        >>> f = Finding(code="labels-range", severity="error", seen="label 7 with 3 classes",
        ...             why="the loss would index past the last class", fix="set `num_labels=8`")
        >>> print(f)
        [labels-range] label 7 with 3 classes: the loss would index past the last class. Set `num_labels=8`.
    """

    code: str
    """Stable name, lower case with hyphens: users may search for it and scripts may test it."""
    severity: Severity
    """How much it matters."""
    seen: str
    """What was seen: names the parameter and the value."""
    why: str = ""
    """The rule, or what would go wrong."""
    fix: str = ""
    """The way out, as something that can be typed."""
    source: str = ""
    """Where the rule comes from: a paper, a measurement, an upstream issue."""
    points: float = 0.0
    """For `favours` and `disfavours`: how many points (0 to 100) of the task's score it is expected to be worth."""

    def __post_init__(self) -> None:
        assert _CODE.match(self.code), f"a finding's code is kebab-case, got {self.code!r}"
        assert self.severity in get_args(Severity), self.severity

    def __str__(self) -> str:
        text = f"[{self.code}] {self.seen}"
        if self.why or self.fix:
            text += f": {self.why.rstrip('.')}." if self.why else "."
        if self.fix:
            text += f" {self.fix[0].upper()}{self.fix[1:].rstrip('.')}"
            text += "" if text.endswith("?") else "."
        return text

    def _repr_html_(self) -> str:
        from tunekit.notebook import findings_html

        return findings_html([self])

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain JSON values, without what is empty."""
        return {k: v for k, v in asdict(self).items() if v or k == "seen"}


class Findings(tuple[Finding, ...]):
    """Several findings: a tuple that prints one a line, and is a table in a notebook."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self)) if self else "nothing found"

    def _repr_html_(self) -> str:
        from tunekit.notebook import findings_html

        return findings_html(self)


def error(code: str, seen: str, why: str = "", fix: str = "", source: str = "") -> Finding:
    """A Finding of severity `error`."""
    return Finding(code=code, severity="error", seen=seen, why=why, fix=fix, source=source)


def warning(code: str, seen: str, why: str = "", fix: str = "", source: str = "") -> Finding:
    """A Finding of severity `warning`."""
    return Finding(code=code, severity="warning", seen=seen, why=why, fix=fix, source=source)


def note(code: str, seen: str, why: str = "", fix: str = "", source: str = "") -> Finding:
    """A Finding of severity `note`."""
    return Finding(code=code, severity="note", seen=seen, why=why, fix=fix, source=source)


def nearest(word: object, known: list[str] | tuple[str, ...]) -> str:
    """A way out of an unknown name: the closest known one as a question, or the whole list where none is close.

    Example:
        >>> nearest("lerning_rate", ["learning_rate", "optim"])
        'did you mean `learning_rate`?'
    """
    import difflib

    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else "known: " + ", ".join(f"`{k}`" for k in known)
