"""`tunekit report`: the report of a run that has a record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command


@command
def answer(
    run: Annotated[Path, typer.Argument(help="The output folder of a run, or its record.json.")],
    advice: Annotated[
        Path | None, typer.Option(help="What `tunekit advise --json` printed, for the table of methods.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to; the run's folder by default.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Write report.html (one file, nothing loaded from elsewhere) and report.json of a run.

    [dim]Example:[/dim] tunekit report runs/tunekit
    """
    from tunekit.report import write_report

    path = run / "record.json" if run.is_dir() else run
    page, data = write_report(
        _read(path, "tunekit-run"), _read(advice, "tunekit-advice") if advice else None, output or path.parent
    )
    return Answer(data={"html": str(page), "json": str(data)}, text=lambda: f"wrote {page}\nwrote {data}")


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
