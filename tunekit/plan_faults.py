"""What can be wrong with single values of a plan, as far as that can be told without a model, data or a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.errors import InvalidError
from tunekit.finding import Finding, error, nearest
from tunekit.task import TASKS, Task

AT_LEAST: Mapping[str, int] = {
    "max_length": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "warmup": 0,
    "max_steps": 1,
    "early_stopping_patience": 1,
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
    "early_stopping_patience": 1_000_000,
}
"""The largest value where something is made for each: rows, tokens, processes. Far above what anybody has run."""

ABOVE_ZERO = ("learning_rate", "num_train_epochs", "eval_interval")
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
    if given.get("eval_interval", 1) > 1 and given["eval_interval"] % 1:
        why, fix = (
            "from 1 on it is a number of steps, which is whole",
            "set `eval_interval: 0.1` or `eval_interval: 100`",
        )
        faults.append(_out_of_range("eval_interval", given["eval_interval"], why, fix))
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
