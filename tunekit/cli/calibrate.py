"""`tunekit calibrate`: a few real steps on this device, to correct later estimates by."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command, flowed


@command
def answer(
    plan: Annotated[
        str | None, typer.Argument(help="A plan file with `data`; without one, what is known is shown.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the plan to change.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps; the first one warms up.")] = 3,
    forget: Annotated[bool, typer.Option("--forget", help="Delete what was measured so far.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Take a few real steps of a plan on this device, and correct every later estimate for it by what they took.

    [dim]Example:[/dim] tunekit calibrate plan.yaml --steps 3
    """
    from tunekit import calibration

    forgotten = calibration.forget() if forget else False
    new: tuple[Any, ...] = ()
    if plan is not None:
        from tunekit.calibrating import calibrate
        from tunekit.cli.values import read_plan

        new = calibrate(read_plan(plan, changes or ()), steps=steps)
    known = calibration.read()
    data = {
        "kind": "tunekit-calibration",
        "file": str(calibration.path()) if calibration.path() else None,
        "forgotten": forgotten,
        "new": [_plain(m) for m in new],
        "measurements": [_plain(m) for m in known],
    }
    return Answer(data=data, text=lambda: _text(data, new, known))


def _plain(measurement: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(measurement), "ratio": measurement.ratio}


def _text(data: dict[str, Any], new: tuple[Any, ...], known: tuple[Any, ...]) -> str:
    from tunekit import calibration

    lines = ["forgot what was measured so far"] if data["forgotten"] else []
    for m in new:
        lines.append(
            f"{_figure(m.what, m.predicted)} predicted, {_figure(m.what, m.measured)} measured: x {m.ratio:.2f}"
        )
    for what in ("memory", "step") if new else ():
        if what not in {m.what for m in new}:
            name = {"memory": "memory", "step": "the time of a step"}[what]
            lines.append(
                f"{name} is left out: too far from the prediction to be this plan alone; try on an idle device"
            )
    for device in sorted({m.device for m in known}):
        for what in ("memory", "step"):
            found = calibration.correction(device, what)
            if found is not None:
                name = {"memory": "memory", "step": "duration"}[what]
                lines.append(f"{device}: {name} is multiplied by {found.factor:.2f} ({found.count} measured)")
    lines.append(f"kept in {data['file']}" if known else "nothing was measured yet: name a plan")
    return flowed("\n".join(lines))


def _figure(what: str, value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if what == "memory" else f"{value:.3g} s a step"
