"""`tunekit.check`: what a plan or a Trainer is about to get wrong, without running it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tunekit.errors import InvalidError, TunekitError
from tunekit.finding import Finding, Findings, error
from tunekit.plan import Plan


def check(trainer_or_plan: Any, dry_run: bool = False) -> Findings:
    """What a run is about to get wrong: each finding with its code, what was seen, why it matters, the fix.

    Nothing is trained or written and no state is changed; with `dry_run` the longest batch is really trained for two steps
    and everything put back as it was: it proves that gradients arrive, that frozen weights stay, that save and reload give
    the same logits, and it measures the peak. It copies the weights to the host's memory, and loads a second model. Of a plan the model and the rows are read, the folder and the
    launch are looked at, and the predicted peak is held against this machine.

    Args:
        trainer_or_plan: A `transformers.Trainer`, Seq2SeqTrainer or TRL trainer, ours or anybody's; or a `tunekit.Plan`.
        dry_run: Whether to train the longest batch for two steps and put everything back; not over several processes.

    Returns:
        The findings, errors first; empty where nothing is wrong. A dry run adds `dry-run-passed` or says why not.

    Raises:
        InvalidError: `check-kind`, for anything else.

    Example:
        >>> import tempfile, torch, tunekit
        >>> from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
        >>> rows = [{"input_ids": [1, 2, i % 9], "labels": i % 3} for i in range(9)]
        >>> args = TrainingArguments(tempfile.mkdtemp(), report_to="none", use_cpu=True)
        >>> [f.code for f in tunekit.check(Trainer(BertForSequenceClassification(config), args, train_dataset=rows))]
        ['labels-range']
    """
    from transformers import Trainer

    from tunekit.preflight import inspect, of_trainer

    if isinstance(trainer_or_plan, Plan):
        return Findings(_check_plan(trainer_or_plan, dry_run))
    if isinstance(trainer_or_plan, Trainer):
        return Findings(_with_dry_run(trainer_or_plan, inspect(of_trainer(trainer_or_plan)), dry_run))
    seen, why = f"a {type(trainer_or_plan).__name__}", "it is neither a `transformers.Trainer` nor a `tunekit.Plan`"
    raise InvalidError(
        error("check-kind", seen, why, "pass the trainer before `train()`, or `tunekit.Plan.load(path)`")
    )


def _with_dry_run(trainer: Any, found: tuple[Finding, ...], dry_run: bool) -> tuple[Finding, ...]:
    if not dry_run:
        return found
    from tunekit.dry_run import dry_run as run

    return (*found, *run(trainer))


def _check_plan(plan: Plan, dry_run: bool) -> tuple[Finding, ...]:
    """What the plan itself, the folder and the launch say; then the Trainer that it becomes."""
    from tunekit.admission import check_output, check_sharding, check_supported, check_world
    from tunekit.assemble import trainer
    from tunekit.preflight import inspect, of_trainer

    found: list[Finding] = []
    for look in (check_world, check_sharding, check_output, check_supported):
        try:
            look(plan)
        except TunekitError as e:
            found += e.findings
    if any(f.code != "output-occupied" for f in found):
        return tuple(found)
    with _no_new_folder(Path(plan.output_dir)):
        try:
            made = trainer(plan, overwrite=True)
        except TunekitError as e:
            return (*found, *e.findings)
        memory, room = _memory(plan)
        seen = inspect(of_trainer(made, memory=memory, device_bytes=room))
        seen = tuple(f for f in seen if not (found and f.code == "output-in-use"))
        return (*found, *_with_dry_run(made, seen, dry_run))


@contextmanager
def _no_new_folder(folder: Path) -> Iterator[None]:
    """The host makes its output folder as soon as a Trainer is built; here nobody asked for one."""
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        yield
    finally:
        for path in new:
            with suppress(OSError):  # not empty: somebody else's by now
                path.rmdir()


def _memory(plan: Plan) -> tuple[Any, int | None]:
    """Predicted peak and this machine's memory; nothing where the model cannot be simulated."""
    from tunekit.advisor.observe.hardware import hardware
    from tunekit.assemble import estimate_memory, plan_facts

    try:
        here = hardware("auto")
        return estimate_memory(plan, here, plan_facts(plan)), here.memory_bytes
    except TunekitError:
        return None, None
