"""`tunekit export`: what a run learnt in another tool's form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command, flowed


@command
def answer(
    run: Annotated[Path, typer.Argument(help="The output folder of a run.")],
    output: Annotated[Path, typer.Argument(help="Where to.")],
    form: Annotated[str, typer.Option("--to", help="peft, merged or adapterhub.")] = "peft",
    base: Annotated[str | None, typer.Option(help="Where the base model lies now, if not where the plan says.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Write what a run learnt for plain PEFT, as one merged model, or for AdapterHub's `adapters`.

    [dim]Example:[/dim] tunekit export runs/tunekit merged-model --to merged
    """
    import tunekit

    folder = tunekit.export(run, output, cast(Any, form), base=base, overwrite=overwrite)
    files = sorted(p.name for p in folder.iterdir())
    data = {"kind": "tunekit-export", "form": form, "folder": str(folder), "files": files}
    return Answer(data=data, text=lambda: flowed(f"wrote {folder} as {form}: {', '.join(files)}"))
