"""`tunekit teach`: the teacher of a plan answers once, before training."""

from __future__ import annotations

from typing import Annotated

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command, say


@command
def answer(
    plan: Annotated[str, typer.Argument(help="A plan file with `data` and a distillation that has a `cache`.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the plan to change.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a cache that was made of something else.")
    ] = False,
    size: Annotated[bool, typer.Option("--size", help="Say how large the cache will be, and write nothing.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Ask a distillation's teacher once for all training rows, so that training needs no teacher; goes on where it stopped.

    [dim]Example:[/dim] tunekit teach plan.yaml && tunekit train plan.yaml
    """
    from tunekit.cli.values import read_plan

    read = read_plan(plan, changes or ())
    from tunekit.teaching import teach

    told = [0.0]

    def progress(done: int, of: int) -> None:
        if done / of >= told[0] + 0.1 or done == of:
            told[0] = done / of
            say(f"{done:,} of {of:,} rows")

    taken = teach(read, say=say, progress=progress, overwrite=overwrite, only_size=size)
    folder = read.objective.cache  # type: ignore[union-attr]
    return Answer(data={"cache": folder, "bytes": taken, "written": not size})
