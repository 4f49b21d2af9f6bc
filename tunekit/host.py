"""The one table that maps a plan's names to what the installed transformers calls them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.errors import InvalidError, raise_all
from tunekit.finding import error, nearest
from tunekit.plan import Plan
from tunekit.task import Task

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass(frozen=True, kw_only=True, slots=True)
class HostField:
    """One `TrainingArguments` field: its names, newest first, and its value for a plan."""

    ours: str
    theirs: tuple[str, ...]
    value: Callable[[Plan], Any]


def _same(name: str) -> HostField:
    return HostField(ours=name, theirs=(name,), value=lambda plan: getattr(plan, name))


HOST_FIELDS: tuple[HostField, ...] = (
    *map(
        _same,
        (
            "output_dir", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "optim",
            "learning_rate", "weight_decay", "max_grad_norm", "lr_scheduler_type", "num_train_epochs", "seed",
        ),
    ),
    HostField(ours="max_steps", theirs=("max_steps",), value=lambda p: -1 if p.max_steps is None else p.max_steps),
    # Below 1 the host reads it as a share of all steps, as the plan does.
    HostField(ours="warmup", theirs=("warmup_steps",), value=lambda p: p.warmup),
    HostField(ours="mixed_precision", theirs=("bf16",), value=lambda p: p.mixed_precision == "bf16"),
    HostField(ours="mixed_precision", theirs=("fp16",), value=lambda p: p.mixed_precision == "fp16"),
    HostField(
        ours="activation_checkpointing",
        theirs=("activation_checkpointing", "gradient_checkpointing"),
        value=lambda p: p.activation_checkpointing,
    ),
    HostField(
        ours="activation_checkpointing",
        theirs=("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
        # The re-entrant form loses the gradient when the input of a block needs none, as with a frozen embedding.
        value=lambda p: {"use_reentrant": False} if p.activation_checkpointing else None,
    ),
    HostField(ours="loss_kernel", theirs=("use_liger_kernel",), value=lambda p: p.loss_kernel == "liger"),
)  # fmt: skip
"""Fields of the plan that `TrainingArguments` has under some name. The first name that is installed is used."""

ELSEWHERE: tuple[str, ...] = (
    "model", "task", "method", "revision", "problem_type", "data", "objective", "max_length", "packing", "dtype",
    "quantization", "attn_implementation", "num_processes", "num_machines", "sharding", "offload", "offload_to", "callbacks",
    "frozen_activations", "eval_interval", "early_stopping_patience",
)  # fmt: skip
"""Fields of the plan that act on the model, the rows or the launch, not on `TrainingArguments`."""


def host_values(plan: Plan, known: frozenset[str]) -> dict[str, Any]:
    """`TrainingArguments` keywords for a plan under the names in `known`.

    Raises:
        AssertionError: the installed version knows none of a field's names; the version range is wrong then.
    """
    values = {}
    for field in HOST_FIELDS:
        name = next((n for n in field.theirs if n in known), None)
        assert name is not None, f"the installed transformers has none of {field.theirs}"
        values[name] = field.value(plan)
    return values


def training_arguments(
    plan: Plan, *, evaluates: bool, cpu: bool, overrides: dict[str, Any] | None = None
) -> TrainingArguments:
    """The `TrainingArguments` (or `Seq2SeqTrainingArguments`) of a plan.

    Args:
        plan: The plan.
        evaluates: Whether there are rows to evaluate on: then each epoch (or `eval_interval`) is evaluated and the best one kept.
        cpu: Whether to stay on the CPU.
        overrides: Host fields that the plan has no say in, such as `logging_steps`.

    Raises:
        InvalidError: an override the plan itself decides (`host-field-owned`) or that the host does not know.
    """
    import transformers

    task = Task.named(plan.task)
    cls = transformers.Seq2SeqTrainingArguments if task.name == "seq2seq" else transformers.TrainingArguments
    known = frozenset(f.name for f in dataclasses.fields(cls) if f.init)
    _check_overrides(overrides or {}, known)
    values = {
        **host_values(plan, known),
        **_habits(plan, task, evaluates),
        "use_cpu": cpu,
        **({"ddp_backend": "gloo"} if cpu and plan.num_processes > 1 else {}),
        **({"ddp_find_unused_parameters": False} if plan.num_processes > 1 else {}),
        **(overrides or {}),
    }
    return cls(**values)


def _habits(plan: Plan, task: Task, evaluates: bool) -> dict[str, Any]:
    """What a run needs and a plan has no knob for; every value may be overridden by keyword."""
    habits: dict[str, Any] = {
        "logging_steps": 10,
        "logging_first_step": True,
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "report_to": "none",
        "batch_eval_metrics": True,
        "data_seed": plan.seed,
        # Half of the tokens of short rows are padding otherwise; the same score after the same steps.
        # Packed rows are nearly of one length: for them it is the order that does not depend on the number of processes.
        "train_sampling_strategy": "group_by_length",
    }
    if evaluates:
        habits |= {
            "eval_strategy": "epoch",
            "load_best_model_at_end": True,
            "metric_for_best_model": f"eval_{task.metric}" if task.has_head else "eval_loss",
            "greater_is_better": task.greater_is_better,
        }
        if plan.eval_interval is not None:
            step = plan.eval_interval if plan.eval_interval < 1 else int(plan.eval_interval)
            habits |= {"eval_strategy": "steps", "eval_steps": step, "save_strategy": "steps", "save_steps": step}
        if task.name == "sequence-classification" and plan.problem_type == "regression":
            habits |= {"metric_for_best_model": "eval_spearman"}
        if plan.problem_type == "multi_label_classification":
            habits |= {"metric_for_best_model": "eval_f1_micro"}
    return habits


def _check_overrides(overrides: dict[str, Any], known: frozenset[str]) -> None:
    owned = {name: field.ours for field in HOST_FIELDS for name in field.theirs}
    faults = [
        error("host-field-owned", f"keyword `{k}`", "the plan decides it", f"use `plan.replace({owned[k]}=...)`")
        for k in overrides
        if k in owned
    ]
    faults += [
        error(
            "host-field-unknown",
            f"keyword `{k}`",
            "the installed TrainingArguments has no such field",
            nearest(k, sorted(known)),
        )
        for k in overrides
        if k not in known and k not in owned
    ]
    raise_all(faults, InvalidError)
