"""Candidate plans: every discovered method under its own recipe, with the knobs that the facts decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from tunekit.advice import Entry
from tunekit.contracts import Method, Recipe, learnt_form
from tunekit.discovery import everything, find
from tunekit.errors import TunekitError, raise_all
from tunekit.finding import Finding, error
from tunekit.plan import DataSpec, Plan
from tunekit.workload import Workload

LARGE_PARAMETERS = 1_000_000_000
"""From here on a frozen base is held in 16 bits from the start; below, fp32 costs little."""
_LENGTH_SHARE = 0.995
"""Share of the rows that are kept whole where a few outliers would set the memory of the whole run."""
_OUTLIER = 1.25
_EVAL_SHARE = 0.1
_EVAL_FROM = 200
"""With fewer rows than this none are held out unasked."""


def propose(workload: Workload, methods: Iterable[str] | None = None) -> tuple[tuple[Plan, ...], tuple[Entry, ...]]:
    """Plans at their preferred settings, and the methods that cannot work here with the reason.

    Whether a plan fits is not asked here; `tunekit.advisor.fit` finds the settings under which it does.

    Args:
        workload: The question.
        methods: Slugs to restrict the candidates to; None compares every method that is installed.

    Raises:
        InvalidError: `method-unknown`, `method-needs-settings`, for every slug at once.
    """
    plans: list[Plan] = []
    refused: list[Entry] = []
    for cls in _classes(methods):
        for method in cls.candidates(workload):
            finding = method.supports(workload.model, workload.task)
            plan = make_plan(workload, method)
            if finding is None:
                plans += [plan, *_smaller(workload, plan)]
            else:
                refused.append(Entry(plan=plan, memory=None, duration=None, findings=(finding,)))
    return tuple(plans), tuple(refused)


def _smaller(workload: Workload, plan: Plan) -> list[Plan]:
    """Where the goal is memory, the plan on a 4-bit base beside it, whether or not a 16-bit one fits."""
    if workload.goal != "memory" or plan.method.trains_base:
        return []
    half, mixed = (
        ("bfloat16", "bf16") if workload.hardware.bf16 or workload.hardware.device == "cpu" else ("float16", "fp16")
    )
    smaller = plan.replace(quantization="nf4", dtype=half, mixed_precision=mixed)
    return [smaller] if refusal(workload, smaller) is None else []


def _classes(methods: Iterable[str] | None) -> list[type[Method]]:
    """The methods' classes in alphabetical order of their slugs, or in the order asked for."""
    if methods is None:
        # What needs settings that nobody can guess (adapters to fuse, a PEFT configuration) proposes nothing by itself.
        return list(everything("method").values())
    found: list[type[Method]] = []
    faults: list[Finding] = []
    for slug in dict.fromkeys([methods] if isinstance(methods, str) else methods):
        try:
            found.append(find("method", slug))
            faults += _needs_settings(found[-1])
        except TunekitError as e:
            faults += e.findings
    raise_all(faults)
    return found


def _needs_settings(cls: type[Method]) -> list[Finding]:
    """Why a method that is asked for by its name alone cannot be proposed."""
    kind: Any = cls
    needed = [
        f.name for f in dataclasses.fields(kind) if f.init and f.default is f.default_factory is dataclasses.MISSING
    ]
    if not needed:
        return []
    names = " and ".join(f"`{n}`" for n in needed)
    seen, why = f"method {cls.slug!r} without settings", f"nobody can guess its {names}"
    fix = f"write a plan with `method: {{kind: {cls.slug}, {needed[0]}: ...}}` and estimate that"
    return [error("method-needs-settings", seen, why, fix)]


def make_plan(workload: Workload, method: Method) -> Plan:
    """The plan of one method under its own recipe, at the settings that would be preferred if memory did not matter."""
    recipe = method.recipe(workload)
    devices = workload.hardware.total_devices
    rows = rows_per_device(recipe, workload)
    return Plan(
        model=workload.model.name,
        revision=workload.model.revision,
        task=workload.task.name,
        problem_type=workload.data.problem_type,
        data=_data_spec(workload),
        output_dir=f"runs/{method.slug}",
        method=method,
        max_length=max_length(workload),
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows if workload.task.name in ("causal-lm", "seq2seq") else 2 * rows,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup=recipe.warmup,
        num_train_epochs=recipe.num_train_epochs,
        optim="adamw_torch_fused" if workload.hardware.device == "cuda" else "adamw_torch",
        num_processes=devices,
        num_machines=workload.hardware.num_machines,
        sharding="ddp" if devices > 1 else None,
        **precision(workload, method),
    )


def rows_per_device(recipe: Recipe, workload: Workload) -> int:
    """Rows of one optimizer step on one device, so that all devices together see the recipe's effective batch."""
    return max(1, round(recipe.effective_batch_size / workload.hardware.total_devices))


def precision(workload: Workload, method: Method) -> Mapping[str, Any]:
    """`dtype` and `mixed_precision`: trained weights in fp32 under autocast, a large frozen base in 16 bits.

    bfloat16 where the device multiplies it natively: half precision overflowed in a fifth of QLoRA's 7B runs.
    """
    if workload.hardware.device == "cpu":
        return {"dtype": "float32", "mixed_precision": None}
    half, mixed = ("bfloat16", "bf16") if workload.hardware.bf16 else ("float16", "fp16")
    small = workload.model.num_parameters < LARGE_PARAMETERS
    return {"dtype": "float32" if method.trains_base or small else half, "mixed_precision": mixed}


def max_length(workload: Workload) -> int | None:
    """Truncation in tokens: what the user demanded, else the longest row without the odd outlier; None where unknown."""
    context = workload.model.context_length or 10**9
    if workload.max_length is not None:
        return min(workload.max_length, context)
    longest = max([workload.data.max_tokens, *workload.data.target_lengths[-1:]])
    if longest == 0:
        return None if workload.model.context_length is None else context
    usual = max(workload.data.quantile_tokens(_LENGTH_SHARE), *workload.data.target_lengths[-1:], 1)
    wanted = longest if longest <= _OUTLIER * usual else usual
    return min(-(-wanted // 8) * 8, context)


def _data_spec(workload: Workload) -> DataSpec | None:
    data = workload.data
    if workload.data_source is None:
        return None
    return DataSpec(
        path=workload.data_source,
        columns=dict(data.columns),
        label_names=data.label_names,
        eval_share=_EVAL_SHARE if not data.num_eval_examples and data.num_examples >= _EVAL_FROM else 0.0,
        fingerprint=data.fingerprint or None,
    )


def refusal(workload: Workload, plan: Plan) -> Finding | None:
    """Why the plan's method cannot work under the plan's quantisation and sharding, or None."""
    form = learnt_form(plan.objective, workload.task, workload.model.side)
    return plan.method.supports(
        workload.model, form, plan.objective, quantization=plan.quantization, sharding=plan.sharding
    )
