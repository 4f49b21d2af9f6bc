"""`tunekit train`: run a plan."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command, flowed


@command
def answer(
    plan: Annotated[str, typer.Argument(help="A plan file with `data`.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the plan to change.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into an output folder that is not empty.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    no_samples: Annotated[bool, typer.Option("--no-samples", help="Keep data rows out of the record.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Train what a plan says, through a transformers Trainer; on several processes by `tunekit launch`.

    [dim]Example:[/dim] tunekit train plan.yaml learning_rate=1e-4 output_dir=runs/second
    """
    from tunekit.cli.values import goes_on, read_plan

    read = read_plan(plan, changes or ())
    from tunekit.callbacks.progress import Progress
    from tunekit.running import run

    progress = Progress(title=read.method.title)
    quiet = {} if verbose else {"log_level_replica": "error"}  # which the host raises to `warning` on other ranks
    try:
        record = run(
            read, overwrite=overwrite, resume=resume, keep_samples=not no_samples, callbacks=[progress], disable_tqdm=True, **quiet
        )  # fmt: skip
    except KeyboardInterrupt:
        one = os.environ.get("WORLD_SIZE", "1") == "1"  # of several, `tunekit launch` says it
        raise KeyboardInterrupt(
            *filter(None, [one and goes_on("train", plan, changes or (), read.output_dir)])
        ) from None
    finally:
        progress.close()
    return Answer(data=record, text=lambda: _text(record, read.output_dir))


def _text(record: dict[str, Any], folder: str) -> str:
    from tunekit.callbacks.progress import clock, metrics_line
    from tunekit.record_text import scores_of, steps_text, weights_text

    lines = []
    if record["final"]:
        lines.append(f"evaluation of the weights kept: {metrics_line(scores_of(record))}")
    measured = record["measured"]
    if measured["duration"]:
        which = weights_text(record)
        kept = f"; the weights kept are {which}" if which else ""
        lines.append(f"{steps_text(record)} in {clock(measured['duration']['wall_seconds'])}{kept}")
    if measured["memory"]:
        lines.append(f"peak memory: {_memory(record)}")
    lines.append(f"saved {folder}{os.sep} (look at it with `tunekit report {folder}`)")
    return flowed("\n".join(lines))


def _memory(record: dict[str, Any]) -> str:
    predicted, measured = record["predicted"]["memory"], record["measured"]["memory"]
    text = f"{measured['device_bytes'] / 2**30:.2f} GiB measured"
    return f"{text}, {predicted['device_bytes'] / 2**30:.2f} GiB predicted" if predicted else text
