"""`tunekit demo`: the whole idea on real rows with real pretrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command, say


@command
def answer(
    output: Annotated[Path, typer.Option(help="Where the reports and the adapter go.")] = Path("demo-out"),
    seeds: Annotated[int, typer.Option(min=1, max=10, help="Runs with different seeds; the mean is shown.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Advise, fine-tune, evaluate and report on bundled bank questions with a real sentence encoder; some minutes.

    [dim]Example:[/dim] tunekit demo --output demo-out
    """
    from tunekit.demo.run import run_demo

    return Answer(data=run_demo(output, seeds=seeds, overwrite=overwrite, say=say))
