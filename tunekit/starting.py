"""From a model and a file of rows to a plan with its reasons: what `tunekit init` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunekit.assemble import advise
from tunekit.commented import commented
from tunekit.errors import MissingError
from tunekit.finding import error
from tunekit.plan_file import write_file
from tunekit.workload import Goal


def init(
    model: Any,
    dataset: Any,
    path: str | Path = "plan.yaml",
    *,
    task: str = "auto",
    columns: Mapping[str, str] | None = None,
    hardware: Any = "auto",
    goal: Goal = "balanced",
    method: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the advised plan for a model and rows, with a comment at each value that says why.

    Args:
        model: Hub id or local folder.
        dataset: A file or folder of rows, or a hub id.
        path: Where the plan goes.
        task: A task's name; `auto` reads it off the columns and the architecture.
        columns: Our column names to the data's, where the columns do not speak for themselves.
        hardware: `auto`, `cpu`, `"H100"`, `"4x24GB"`, `"2x8xH200"`, or a `tunekit.Hardware`.
        goal: What matters most.
        method: A method's slug; None: the first of the advice.
        overwrite: Whether a file of that name may be written over.

    Returns:
        Where the plan lies.

    Raises:
        MissingError: `nothing-fits`, naming the least that would have to change.
        OccupiedError: `plan-file-exists`.
        TunekitError: what `tunekit.advise` says.

    Example:
        >>> import tunekit
        >>> tunekit.init("./my-model", "rows.jsonl", hardware="24GB")           # doctest: +SKIP
        PosixPath('plan.yaml')
    """
    advice = advise(model, dataset, task, columns, hardware, goal, methods=[method] if method else None)
    if advice.best is None:
        least = "; ".join(f"{f.seen}{f'. {f.fix}' if f.fix else ''}" for f in advice.findings[:2]) or "no method fits"
        raise MissingError(
            error("nothing-fits", f"no plan for {path}", least, "look at the whole with `tunekit advise`")
        )
    path = Path(path)
    write_file(path, commented(advice.best, advice.workload), overwrite)
    return path
