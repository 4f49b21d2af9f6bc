"""A plan from disk to disk: trained, evaluated, saved, and told about in a record and a model card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.assemble import estimate_memory, estimate_time, plan_facts, trainer
from tunekit.plan import Plan
from tunekit.run_folder import PLAN, resolved
from tunekit.saving import writing
from tunekit.task import Task

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback


def run(
    plan: Plan,
    *,
    overwrite: bool = False,
    resume: bool = False,
    keep_samples: bool = True,
    callbacks: Iterable[TrainerCallback] = (),
    **arguments: Any,
) -> dict[str, Any]:
    """Trains a plan from disk to disk and returns the run's record: predicted and measured, side by side.

    The output folder gets what was learnt, the tokenizer, `plan.yaml`, `record.json` and a model card.

    Args:
        plan: A plan with `data`.
        overwrite: Whether an output folder that holds something may be written into.
        resume: Whether to go on from the newest checkpoint in the output folder.
        keep_samples: Whether some rows with the model's answers go into the record, for the report.
        callbacks: Further callbacks.
        **arguments: `TrainingArguments` fields that the plan has no say in.

    Raises:
        TunekitError: everything that is wrong, before anything is written.

    Example:
        >>> import tunekit
        >>> tunekit.run(tunekit.Plan(model="gpt2", task="causal-lm", method=tunekit.methods.Full()))
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [plan-data-missing] a plan without `data`: there are no rows to train on. ...
    """
    from tunekit.callbacks.run_record import RunRecord
    from tunekit.interchange.card import write_card

    made = trainer(plan, callbacks=callbacks, overwrite=overwrite or resume, **arguments)
    record = RunRecord(plan.output_dir, plan=plan)
    made.add_callback(record)
    made.train(resume_from_checkpoint=resume or None)
    record.expect(*_predicted(plan))  # not before: the first step need not wait for it
    if made.eval_dataset is not None:
        made.evaluate()
    with writing(plan.output_dir):
        made.save_model(plan.output_dir)
    if made.is_world_process_zero():
        left = resolved(plan, made.model)
        left.save(Path(plan.output_dir) / PLAN, overwrite=True)
        record.add(made.state, **(_samples(made, left) if keep_samples and plan.num_processes == 1 else {}))
        write_card(plan.output_dir, left, record.to_dict())
        _calibrate(record.to_dict(), made.args.world_size)
    return record.to_dict()


def _calibrate(record: dict[str, Any], world_size: int) -> None:
    """What this run measured goes into the user's calibration; a folder that cannot be written to stops no run."""
    from tunekit import calibration
    from tunekit.advisor.observe.hardware import hardware
    from tunekit.errors import TunekitError

    with contextlib.suppress(TunekitError, OSError):
        calibration.add(calibration.from_record(record, hardware("auto").name, world_size))


def _samples(made: Trainer, plan: Plan) -> dict[str, Any]:
    """Rows with the model's answers; a finished run is not lost over a model that does not show any."""
    from tunekit.samples import samples

    if plan.objective is not None and plan.objective.own_rows:
        return {}  # its model answers in another form than the task's
    try:
        return samples(made, Task.named(plan.task), plan.problem_type)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError) as e:
        return {"samples_missing": f"{type(e).__name__}: {e}"[:200]}


def _predicted(plan: Plan) -> tuple[Any, Any]:
    """What the advisor expects of the plan on this machine; nothing where the model cannot be simulated."""
    from tunekit.advisor.observe.hardware import hardware
    from tunekit.errors import TunekitError

    try:
        here, facts = hardware("auto"), plan_facts(plan)
        return estimate_memory(plan, here, facts), estimate_time(plan, here, facts)
    except TunekitError:
        return None, None
