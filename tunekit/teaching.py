"""Filling the cache of a distillation from a plan: the teacher answers once, before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunekit.data.collate import collator
from tunekit.errors import InvalidError, MissingError, UnsupportedError
from tunekit.finding import error
from tunekit.material import Material, gather
from tunekit.plan import Plan
from tunekit.task import Task


def teach(
    plan: Plan,
    *,
    train_dataset: Any = None,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, of: None,
    overwrite: bool = False,
    only_size: bool = False,
) -> int:
    """Asks the teacher of a plan with `objective: {kind: distillation, cache: ...}` once for every training row.

    Training reads its answers from the cache through memory maps and loads no teacher. What was answered stays when the
    run is broken off; calling this again goes on there. A cache is tied to rows, teacher, tokenizer and settings: training
    with others is refused.

    Args:
        plan: The plan that will train; its teacher is asked on a GPU where there is one.
        train_dataset: Rows to answer in place of the plan's `data`; the same must be handed to `tunekit.trainer`.
        say: Told the size before anything is written.
        progress: Told how many rows are done, and all.
        overwrite: Whether a cache of something else is replaced.
        only_size: Whether to stop after saying the size.

    Returns:
        About how many bytes the cache takes.

    Raises:
        InvalidError: `teach-nothing`, for a plan without a cache to fill.
        TunekitError: what is wrong with rows, teacher or cache.

    Example:
        >>> import tunekit
        >>> objective = tunekit.objectives.Distillation(teacher="./teacher", cache="./answers")
        >>> plan = tunekit.Plan(model="./student", task="causal-lm", method=tunekit.methods.Full(), objective=objective)
        >>> tunekit.teach(plan, train_dataset="rows.jsonl")                         # doctest: +SKIP
        12,000 rows, top 64 log-probabilities and the rest: 0.42 GiB in answers
    """
    objective: Any = plan.objective
    if getattr(objective, "cache", None) is None or not hasattr(objective, "teach"):
        raise InvalidError(
            error("teach-nothing", "a plan without a cache to fill", "its objective asks no teacher beforehand", "set `objective: {kind: distillation, teacher: ..., cache: ...}`")
        )  # fmt: skip
    task = Task.named(plan.task)
    fault = objective.supports(None, task)
    if fault is not None:
        raise (MissingError if fault.code.endswith("missing") else UnsupportedError)(fault)
    material = gather(plan, train_dataset)
    size: int = objective.teach(
        material.train, task, _student(plan, material), material.tokenizer, collator(task, material.tokenizer),
        rows_at_once=plan.per_device_eval_batch_size, say=say, progress=progress, overwrite=overwrite, only_size=only_size,
    )  # fmt: skip
    return size


def _student(plan: Plan, material: Material) -> Any:
    """The student's configuration, with the classes of the rows."""
    from transformers import AutoConfig

    from tunekit.pretrained import check_folder

    check_folder(plan.model)
    config = AutoConfig.from_pretrained(plan.model, revision=plan.revision, trust_remote_code=False)
    if material.num_labels is not None:
        config.num_labels = material.num_labels
        if material.label_names:
            config.id2label = dict(enumerate(material.label_names))
            config.label2id = {n: i for i, n in enumerate(material.label_names)}
    return config
