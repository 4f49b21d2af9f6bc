"""`tunekit init`: a few questions, and a plan with its reasons."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command, flowed

_GOALS = "quality, balanced, speed, memory, storage, retention, latency"


@command
def answer(
    dataset: Annotated[str | None, typer.Argument(help="Rows: .jsonl, .csv, .parquet, a folder, or a hub id.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or local folder.")] = None,
    hardware: Annotated[str | None, typer.Option(help='auto, cpu, H100, "4x24GB", "2x8xH200".')] = None,
    goal: Annotated[str | None, typer.Option(help=f"{_GOALS}.")] = None,
    task: Annotated[str, typer.Option(help="A task's name; auto reads it off columns and model.")] = "auto",
    column: Annotated[
        list[str] | None, typer.Option(help="Our column name to the data's, as text=sentence; may be repeated.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="A method's slug; the first of the advice if not said.")] = None,
    output: Annotated[Path, typer.Option(help="Where the plan goes.")] = Path("plan.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a plan of that name.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Ask at most four questions, write plan.yaml with a comment at each value, and say the one command that trains it.

    What is given as an option is not asked; without a terminal nothing is asked and defaults stand.

    [dim]Example:[/dim] tunekit init rows.jsonl --model ./my-model
    """
    dataset = dataset or _asked("Where are the rows? (a file, a folder or a hub id)", None, "dataset")
    model = model or _asked("Which model? (a folder or a hub id)", None, "--model")
    hardware = hardware or _asked("What will it run on? (auto: this machine)", "auto", "--hardware")
    goal = goal or _asked(f"What matters most? ({_GOALS})", "balanced", "--goal")
    from tunekit.cli.values import pairs

    columns = pairs(column, "--column") if column else None
    import tunekit

    path = tunekit.init(
        model, dataset, output, task=task, columns=columns, hardware=hardware, goal=cast(Any, goal), method=method, overwrite=overwrite
    )  # fmt: skip
    plan = tunekit.Plan.load(path)
    data = {"kind": "tunekit-init", "path": str(path), "plan": plan.to_dict()}
    start = "tunekit launch" if plan.num_processes > 1 else "tunekit train"
    return Answer(data=data, text=lambda: flowed(f"wrote {path}: {_in_short(plan)}\ntrain it with `{start} {path}`"))


def _asked(question: str, default: str | None, name: str) -> str:
    """The answer typed at a terminal; without one the default, or an error that names the option.

    Raises:
        InvalidError: `init-missing`.
    """
    if sys.stdin.isatty():
        return str(typer.prompt(question, default=default, err=True))
    if default is not None:
        return default
    from tunekit.errors import InvalidError
    from tunekit.finding import error

    raise InvalidError(error("init-missing", f"no `{name}`", "there is no terminal to ask at", f"give `{name}`"))


def _in_short(plan: Any) -> str:
    from tunekit.advice_text import method_text, settings

    return f"{method_text(plan)}, {settings(plan)}"
