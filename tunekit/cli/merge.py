"""`tunekit merge`: a plain model out of a base and what was learnt."""

from __future__ import annotations

from typing import Annotated

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command, flowed


@command
def answer(
    folder: Annotated[str, typer.Argument(help="The output folder of a run, or one of its checkpoints.")],
    output: Annotated[str, typer.Argument(help="Where the merged model goes.")],
    dequantized: Annotated[
        bool,
        typer.Option(
            "--dequantized", help="Into the quantised weights as they were trained on, dequantised; not into the base."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output folder that is not empty.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Fold what was learnt into the base, and say how far its answers then are from those of the trained model.

    A base that was quantised for training is merged into as it was published, or dequantised; never into 4 or 8 bits.

    [dim]Example:[/dim] tunekit merge runs/first merged
    """
    from tunekit.merging import merge

    told = merge(folder, output, into="dequantized" if dequantized else "base", overwrite=overwrite)
    return Answer(data=told.to_dict(), text=lambda: flowed(str(told)))
