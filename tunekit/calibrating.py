"""`tunekit.calibrate`: a few real steps of a plan on this device, and what they say of later estimates."""

from __future__ import annotations

import tempfile
from typing import Any

from tunekit.calibration import Measurement
from tunekit.errors import InvalidError
from tunekit.finding import error
from tunekit.plan import Plan


def calibrate(plan: Plan, train_dataset: Any = None, *, steps: int = 3) -> tuple[Measurement, ...]:
    """Takes a few real steps of a plan on this device and keeps what they took beside what was predicted.

    The corrections lie in one file (`tunekit.calibration.path()`), by device; every estimate for the device is multiplied
    by the middle of the measured ratios and says so. The plan's first step warms up and is not counted. Nothing is saved,
    and the plan's output folder is not touched.

    Args:
        plan: What is trained; with `data`, or with `train_dataset`.
        train_dataset: Rows as `tunekit.trainer` takes them.
        steps: Optimizer steps, the first of which warms up.

    Returns:
        What was measured: memory, and the seconds of a step.

    Raises:
        TunekitError: what `tunekit.trainer` refuses; `calibrate-steps`; `calibrate-nothing` where the model cannot be
            simulated or the figures are too far apart to be of the same workload.

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="gpt2", task="causal-lm", method=tunekit.methods.Full())
        >>> tunekit.calibrate(plan, steps=1)
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [calibrate-steps] `steps` is 1: the first one only warms up. Take 2 or more.
    """
    if steps < 2:
        raise InvalidError(
            error("calibrate-steps", f"`steps` is {steps}", "the first one only warms up", "take 2 or more")
        )
    from tunekit import calibration
    from tunekit.advisor.observe.hardware import hardware

    record, world_size = _steps(plan, train_dataset, steps)
    found = calibration.from_record(record, hardware("auto").name, world_size)
    if not found:
        seen = _seen(record)
        why = "there is no prediction to correct, or it is of another workload (another program on the device?)"
        raise InvalidError(error("calibrate-nothing", seen, why, "run it on an idle device, or leave it out"))
    calibration.add(found)
    return found


def _seen(record: dict[str, Any]) -> str:
    sides = []
    for name in ("predicted", "measured"):
        memory, duration = record[name]["memory"], record[name]["duration"]
        gib = f"{memory['device_bytes'] / 2**30:.2f} GiB" if memory else "no memory"
        sides.append(f"{gib} and {duration['step_seconds']:.3g} s a step" if duration else f"{gib} and no time")
    return f"{sides[0]} predicted, {sides[1]} measured"


def _steps(plan: Plan, train_dataset: Any, steps: int) -> tuple[dict[str, Any], int]:
    """The record of a short run that saves and evaluates nothing, and how many processes took it."""
    from transformers import PrinterCallback

    from tunekit.advisor.observe.hardware import hardware
    from tunekit.assemble import estimate_memory, estimate_time, plan_facts, trainer
    from tunekit.callbacks.run_record import RunRecord

    with tempfile.TemporaryDirectory(prefix="tunekit-calibrate-") as folder:
        short = plan.replace(max_steps=steps, output_dir=folder, callbacks=(), early_stopping_patience=None)
        made = trainer(
            short, train_dataset=train_dataset, overwrite=True, save_strategy="no", eval_strategy="no",
            load_best_model_at_end=False, report_to=[], disable_tqdm=True,
        )  # fmt: skip
        here, facts = hardware("auto"), plan_facts(plan) or _lengths(made)
        memory, duration = estimate_memory(short, here, facts), estimate_time(short, here, facts)
        record = RunRecord(folder, plan=short, memory=memory, duration=duration)
        made.add_callback(record)
        made.remove_callback(PrinterCallback)
        made.train()
        return record.to_dict(), made.args.world_size


def _lengths(trainer: Any) -> list[int] | None:
    """Tokens of the rows a Trainer has, as far as they are tokenised."""
    rows = trainer.train_dataset
    found = [len(rows[i]["input_ids"]) for i in range(min(1000, len(rows))) if "input_ids" in rows[i]]
    return found or None
