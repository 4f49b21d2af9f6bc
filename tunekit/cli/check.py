"""`tunekit check`: what a plan is about to get wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command, flowed


@command
def answer(
    plan: Annotated[str, typer.Argument(help="A plan file.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the plan to change.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train the longest batch for two steps and put everything back.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Read a plan's model and rows and say what the run would get wrong; nothing is trained or written.

    Exits with 2 where a problem is an error.

    [dim]Example:[/dim] tunekit check plan.yaml per_device_train_batch_size=32
    """
    from tunekit.cli.values import read_plan

    read = read_plan(plan, changes or ())
    import tunekit
    from tunekit.errors import raise_all

    findings = tunekit.check(read, dry_run=dry_run)
    raise_all(findings)
    data = {"kind": "tunekit-check", "findings": [f.to_dict() for f in findings]}
    looked = (
        "the plan, the model, the rows and two steps of the longest batch"
        if dry_run
        else "the plan, the model and the rows"
    )
    further = "" if dry_run else "; `--dry-run` also trains the longest batch for two steps"
    none = f"no problem found in {looked}{further}"
    return Answer(data=data, text=lambda: flowed("\n".join(map(str, findings)) or none))
