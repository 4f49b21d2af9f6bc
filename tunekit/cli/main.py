"""The command line: one command a file, each one function of the public face."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

EPILOG = (
    "Exit codes: 0 done, 1 a fault of tunekit's own, 2 something to put right (said in one message), 130 interrupted."
)

app = typer.Typer(
    name="tunekit",
    help="Which fine-tuning method, will it fit, how long will it take, and set it up.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

COMMANDS = (
    "init",
    "advise",
    "estimate",
    "calibrate",
    "check",
    "student",
    "teach",
    "train",
    "launch",
    "merge",
    "report",
    "export",
    "import",
    "methods",
    "explain",
    "demo",
)
"""In the order of the help; each is the `answer` of the module of its name (`import_`, since Python has that word)."""

for name in COMMANDS:
    module = importlib.import_module(f"tunekit.cli.{name}_" if name == "import" else f"tunekit.cli.{name}")
    app.command(name)(module.answer)


def _version(asked: bool) -> None:
    if asked:
        import tunekit

        typer.echo(f"tunekit {tunekit.__version__}")
        raise typer.Exit


@app.callback()
def _house(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point; ends the process with the exit code."""
    try:
        app(prog_name="tunekit")
    except KeyboardInterrupt:
        sys.exit(130)
