"""The errors a user can cause: one family, each also the standard library's, each carrying Findings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunekit.finding import Finding


class TunekitError(Exception):
    """Every error that a user can cause. Catch this one to catch them all.

    One error reports every fault that was found, not only the first: `findings` holds them, each with its
    stable code, what was seen, why that cannot work, and the way out.

    Args:
        findings: What is wrong; at least one.

    Example:
        >>> from tunekit.finding import error
        >>> raise InvalidError(error("lora-r", "`r` of `Lora` is 0", "a rank is at least 1", "use `Lora(r=8)`"))
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [lora-r] `r` of `Lora` is 0: a rank is at least 1. Use `Lora(r=8)`.
    """

    findings: tuple[Finding, ...]

    def __init__(self, *findings: Finding) -> None:
        assert findings, "an error says what is wrong"
        # Not `super()`: OSError would read two to five arguments as errno, message and file names, and drop the others.
        BaseException.__init__(self, *findings)
        self.findings = findings

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.findings

    @property
    def codes(self) -> tuple[str, ...]:
        """The stable codes of the findings, in order."""
        return tuple(f.code for f in self.findings)

    def __str__(self) -> str:
        lines = [str(f) for f in self.findings]
        return lines[0] if len(lines) == 1 else "\n".join([f"{len(lines)} problems:", *(f"  {x}" for x in lines)])


class InvalidError(TunekitError, ValueError):
    """A value breaks a rule that can be told without looking at the outside world."""


class UnsupportedError(TunekitError, ValueError):
    """Each value is fine by itself, together they cannot work; the finding names the nearest thing that does."""


class MissingError(TunekitError, FileNotFoundError):
    """A model, file, column or folder that was named is not there."""


class OccupiedError(TunekitError, FileExistsError):
    """Something would be overwritten that nobody said may be."""


class UnreadableError(TunekitError, OSError):
    """A file is there and cannot be read as what it should be."""


class MissingPackageError(TunekitError, ImportError):
    """An optional package is needed and not installed."""


class RunError(TunekitError, RuntimeError):
    """A run could not go on; what was saved before it is named."""


def raise_all(findings: Iterable[Finding], kind: type[TunekitError] = InvalidError) -> None:
    """Raises one `kind` with every finding of severity error, or returns when there is none."""
    faults = tuple(f for f in findings if f.severity == "error")
    if faults:
        raise kind(*faults)
