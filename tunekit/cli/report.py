"""`tunekit report`: the report of a run that has a record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command

_SAMPLES = ("samples", "trained_tokens", "confusion")
"""What of a record shows rows or their labels."""


@command
def answer(
    runs: Annotated[
        list[Path], typer.Argument(help="The output folder of a run, or its record.json; several are compared.")
    ],
    advice: Annotated[
        Path | None, typer.Option(help="What `tunekit advise --json` printed, for the table of methods.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write to; the (first) run's by default.")] = None,
    no_samples: Annotated[bool, typer.Option("--no-samples", help="Keep data rows out.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Write report.html and report.json of a run, or comparison.html and comparison.json of several.

    A page is one file that loads nothing from elsewhere.

    [dim]Example:[/dim] tunekit report runs/lora runs/full
    """
    from tunekit.report import write_comparison, write_report

    paths = [run / "record.json" if run.is_dir() else run for run in runs]
    records = [_read(path, "tunekit-run") for path in paths]
    told = _read(advice, "tunekit-advice") if advice else None
    if no_samples:
        records = [{k: v for k, v in record.items() if k not in _SAMPLES} for record in records]
    folder = output or paths[0].parent
    if len(records) > 1:
        page, data = write_comparison(records, _names(paths), folder)
    else:
        page, data = write_report(records[0], told, folder)
    return Answer(data={"html": str(page), "json": str(data)}, text=lambda: f"wrote {page}\nwrote {data}")


def _names(paths: list[Path]) -> list[str]:
    """The runs' folders, with as much of the path as tells them apart."""
    parts = [p.resolve().parent.parts if p.name == "record.json" else p.resolve().with_suffix("").parts for p in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({i})" for i, name in enumerate(names, 1)]


def _read(path: Path, kind: str) -> dict[str, Any]:
    import json

    from tunekit.errors import MissingError, UnreadableError
    from tunekit.finding import error

    way_out = (
        "name the output folder of a run" if kind == "tunekit-run" else "save one with `tunekit advise ... --json`"
    )
    if not path.is_file():
        raise MissingError(error("record-missing", f"{path}", "no such file", way_out))
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as e:
        raise UnreadableError(error("record-unreadable", f"{path}", " ".join(str(e).split())[:200], way_out)) from None
    if not isinstance(data, dict) or data.get("kind") != kind:
        raise UnreadableError(error("record-kind", f"{path}", f"it is no `{kind}`", way_out))
    return data
