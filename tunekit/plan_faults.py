"""What can be wrong with the values of a plan, as far as that can be told without a model, data or a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunekit.errors import InvalidError
from tunekit.finding import Finding, error, nearest
from tunekit.task import TASKS, Task

if TYPE_CHECKING:
    from tunekit.plan import Plan

AT_LEAST: Mapping[str, int] = {
    "max_length": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "warmup": 0,
    "max_steps": 1,
    "seed": 0,
    "num_processes": 1,
    "num_machines": 1,
}
"""The smallest value a field may have."""

AT_MOST: Mapping[str, int] = {
    "max_length": 100_000_000,
    "per_device_train_batch_size": 1_000_000,
    "per_device_eval_batch_size": 1_000_000,
    "gradient_accumulation_steps": 1_000_000,
    "num_processes": 1_000_000,
    "num_machines": 1_000_000,
}
"""The largest value where something is made for each: rows, tokens, processes. Far above what anybody has run."""

ABOVE_ZERO = ("learning_rate", "num_train_epochs")
LARGEST_SEED = 2**32 - 1
"""NumPy's generator, which the host seeds too, takes no more."""


def range_faults(values: Mapping[str, Any]) -> list[Finding]:
    """One fault for each of the well-typed `values` that lies outside its range."""
    given = {name: value for name, value in values.items() if value is not None}
    faults = [
        _out_of_range(name, given[name], f"it must be at least {low}", f"set `{name}: {low}` or more")
        for name, low in AT_LEAST.items()
        if name in given and given[name] < low
    ]
    faults += [
        _out_of_range(name, given[name], f"it must be at most {most:,}", f"set `{name}: {most}` or less")
        for name, most in AT_MOST.items()
        if name in given and given[name] > most
    ]
    faults += [
        _out_of_range(name, given[name], "it must be above 0", f"set `{name}` above 0")
        for name in ABOVE_ZERO
        if name in given and given[name] <= 0
    ]
    if given.get("seed", 0) > LARGEST_SEED:
        faults.append(_out_of_range("seed", given["seed"], f"it must be at most {LARGEST_SEED}", "set `seed: 42`"))
    if not str(given.get("model", "x")).strip():
        faults.append(
            error("plan-model", "`model` is empty", "there is nothing to train", "name a hub id or a local folder")
        )
    return faults + (_task_faults(given["task"]) if "task" in given else [])


def _out_of_range(name: str, value: Any, why: str, fix: str) -> Finding:
    return error(f"plan-{name.replace('_', '-')}", f"`{name}` is {value}", why, fix)


def _task_faults(name: str) -> list[Finding]:
    try:
        if (task := Task.named(name)) not in TASKS:
            why, fix = "a model has this form, no plan does", nearest(name, [t.name for t in TASKS])
            return [error("task-unknown", f"task '{task}'", why, fix)]
    except InvalidError as e:
        return list(e.findings)
    return []


def combination_faults(plan: Plan) -> list[Finding]:
    """One fault for each pair of values that cannot go together."""
    sharding = plan.sharding or ""
    cached = plan.frozen_activations == "cached"
    recompute = "set `frozen_activations: recomputed`"
    rules = (
        (
            cached and plan.num_processes > 1,
            "plan-activations-processes",
            f"`frozen_activations: cached` with `num_processes: {plan.num_processes}`",
            "every process would need the answers to the rows of all",
            f"{recompute}, or `num_processes: 1`",
        ),
        (
            cached and plan.packing,
            "plan-activations-packing",
            "`frozen_activations: cached` with `packing`",
            "what is kept belongs to whole rows",
            f"{recompute}, or `packing: false`",
        ),
        (
            cached and plan.objective is not None and plan.objective.slug != "supervised",
            "plan-activations-objective",
            f"`frozen_activations: cached` with objective {plan.objective.slug if plan.objective else ''}",
            "it asks the model in ways of its own",
            recompute,
        ),
        (
            plan.packing and plan.task != "causal-lm",
            "plan-packing-task",
            f"`packing` with task {plan.task}",
            "only rows of a causal-lm can be joined",
            "set `packing: false`",
        ),
        (
            plan.packing and not plan.method.packs,
            "plan-packing-method",
            f"`packing` with method {plan.method.slug}",
            "what it puts in front of a row would be in front of the first of the joined ones only",
            "set `packing: false`",
        ),
        (
            plan.packing and plan.objective is not None and not plan.objective.packs,
            "plan-packing-objective",
            f"`packing` with objective {plan.objective.slug if plan.objective is not None else ''}",
            "it reads a row as one text, from its first token on",
            "set `packing: false`",
        ),
        (
            plan.loss_kernel == "chunked" and plan.task not in ("causal-lm", "seq2seq"),
            "plan-loss-kernel-task",
            f"`loss_kernel: chunked` with task {plan.task}",
            "only the loss over a vocabulary is worth taking in chunks",
            "set `loss_kernel: plain`",
        ),
        (
            plan.loss_kernel == "chunked" and plan.objective is not None and plan.objective.slug != "supervised",
            "plan-loss-kernel-objective",
            f"`loss_kernel: chunked` with objective {plan.objective.slug if plan.objective is not None else ''}",
            "it has a loss of its own, over a vocabulary in pieces where it has one",
            "set `loss_kernel: plain`",
        ),
        (
            plan.problem_type is not None and plan.task != "sequence-classification",
            "plan-problem-type-task",
            f"`problem_type` with task {plan.task}",
            "only sequence-classification has one",
            "remove `problem_type`",
        ),
        (
            plan.quantization is not None and plan.method.trains_base,
            "plan-quantized-base",
            f"`quantization: {plan.quantization}` with method {plan.method.slug}",
            "quantised weights cannot be trained",
            "use `method: {kind: lora}`, or `quantization: null`",
        ),
        (
            plan.num_processes > 1 and plan.sharding is None,
            "plan-sharding-missing",
            f"`num_processes: {plan.num_processes}` without `sharding`",
            "several processes must share the work somehow",
            "set `sharding: ddp`",
        ),
        (
            plan.num_processes == 1 and plan.sharding is not None,
            "plan-sharding-single",
            f"`sharding: {plan.sharding}` with one process",
            "there is nobody to share with",
            "set `sharding: null`, or `num_processes` above 1",
        ),
        (
            plan.num_processes % plan.num_machines != 0,
            "plan-machines",
            f"`num_processes: {plan.num_processes}` on {plan.num_machines} machines",
            "every machine runs the same number",
            f"set `num_processes` to a multiple of {plan.num_machines}",
        ),
        (
            plan.offload is not None and not sharding.startswith("zero"),
            "plan-offload-sharding",
            f"`offload: {plan.offload}` with `sharding: {plan.sharding or 'null'}`",
            "offloading is DeepSpeed's",
            "set `sharding: zero2` or `zero3`",
        ),
        (
            plan.offload == "parameters" and sharding in ("zero1", "zero2"),
            "plan-offload-stage",
            f"`offload: parameters` with {sharding}",
            "parameters are only sharded by ZeRO-3",
            "set `sharding: zero3`",
        ),
    )
    return [error(*finding) for broken, *finding in rules if broken]
