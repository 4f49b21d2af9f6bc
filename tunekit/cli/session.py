"""What every command has: a quiet console, one place that prints, and one message for what the user can put right."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import typer

from tunekit.errors import TunekitError, UnreadableError
from tunekit.finding import error

AsJson = Annotated[bool, typer.Option("--json", help="Print plain JSON on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Let the libraries below say what they say.")]

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Read by the libraries when they are imported; what the user has set stays."""

_LOUD = ("bitsandbytes.backends.cpu.ops", "DeepSpeed")
"""Loggers that warn at every import: of an optional package that nothing here uses, of a machine without a GPU. They are
filtered by name because they set their own level."""

_CONSOLE: ContextVar[TextIO | None] = ContextVar("console", default=None)
"""Standard output while a command runs; None with `--json` and on other ranks."""

_OUTSIDE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR}  # fmt: skip
"""Faults of the file system that are no fault of ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a command found: as plain values for `--json`, as text for people."""

    data: Mapping[str, Any] | list[Any]
    text: Callable[[], str] | None = None
    """Asked when it is printed, on the console it is printed on; None where the command has said all while it ran."""


def command(function: Callable[..., Answer]) -> Callable[..., None]:
    """Makes a command of a function that returns an Answer; the function has `as_json` and `verbose` among its options.

    Standard output carries the answer alone: whatever a library prints goes to standard error. A `TunekitError` is one
    message and exit 2, an interruption exit 130 (with what the exception says of it); anything else is a fault of ours and keeps its traceback.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        as_json = kwargs["as_json"]
        console = _CONSOLE.set(None if as_json or _rank() else sys.stdout)
        try:
            with redirect_stdout(sys.stderr), _quiet(kwargs["verbose"]):
                answer = function(*args, **kwargs)
        except TunekitError as e:
            _refuse(e, as_json)
        except OSError as e:
            if e.errno not in _OUTSIDE:
                raise
            _refuse(UnreadableError(_outside(e)), as_json)
        except KeyboardInterrupt as e:
            if not _rank():
                typer.echo("; ".join(("interrupted", *map(str, e.args))), err=True)  # whole: a command to copy
            raise typer.Exit(130) from None
        else:
            _show(answer, as_json)
        finally:
            _CONSOLE.reset(console)

    run.__doc__ = "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(function.__doc__ or "").split("\n\n"))
    return run


def say(text: Callable[[], str] | str) -> None:
    """Says something while a command runs: on standard output, with `--json` on standard error; on other ranks nothing.

    Args:
        text: What to say, or what makes it on the console it is printed on.
    """
    if _rank():
        return
    with redirect_stdout(_CONSOLE.get() or sys.stderr):
        typer.echo(text if isinstance(text, str) else text())
        sys.stdout.flush()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _show(answer: Answer, as_json: bool) -> None:
    if _rank():
        return
    if as_json:
        from tunekit.files import finite

        typer.echo(json.dumps(finite(answer.data), indent=2, ensure_ascii=False, allow_nan=False))
    elif answer.text is not None:
        typer.echo(answer.text().rstrip("\n"))


def _refuse(fault: TunekitError, as_json: bool) -> None:
    """One message on standard error, with `--json` the findings on standard output too; exit 2."""
    typer.echo(flowed(f"error: {fault}", sys.stderr), err=True)
    if as_json:
        data = {"kind": "tunekit-error", "findings": [f.to_dict() for f in fault.findings]}
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
    raise typer.Exit(2)


def _outside(e: OSError) -> Any:
    where = f"{e.filename!r}" if e.filename else "a file"
    return error("file-system", where, e.strerror or str(e), "make room or choose another place")


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """The libraries below say nothing that asks for no action, unless `verbose`."""
    if verbose:
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in _LOUD:
        logging.getLogger(name).addFilter(_is_error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in _LOUD:
            logging.getLogger(name).removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def flowed(text: str, file: TextIO | None = None) -> str:
    """Sentences cut at their words where the terminal is narrower; elsewhere a line stays one, for what searches it.

    Args:
        text: Lines; the further lines of an item or of a finding hang below its first word.
        file: Where they are printed; None: standard output.
    """
    file = sys.stdout if file is None else file
    if not file.isatty():
        return text
    from rich.console import Console

    width = max(40, Console(file=file).width)
    return "\n".join(part for line in text.split("\n") for part in _cut(line, width))


def _cut(line: str, width: int) -> list[str]:
    body = line.lstrip()
    indent = line[: len(line) - len(body)]
    hang = indent + "  " * body.startswith(("- ", "["))
    cut = textwrap.wrap(
        body, width, initial_indent=indent, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False
    )
    return cut or [""]


def console_text(*parts: Any) -> str:
    """Rich tables and texts as text: coloured where standard output is a terminal, plain on a pipe."""
    from rich.console import Console

    console = Console()
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
