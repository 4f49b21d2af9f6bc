"""What is wrong with the settings of a distillation, by themselves and for a task; nothing is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import MissingError, TunekitError, UnsupportedError
from tunekit.finding import Finding, error

if TYPE_CHECKING:
    from tunekit.task import Task


def range_faults(d: Any) -> list[Finding]:
    """Values out of range, and settings that exclude each other.

    Args:
        d: A `Distillation`.
    """
    rules = {
        "temperature": (d.temperature > 0, "it must be above 0", "set `temperature=2.0`"),
        "hard_weight": (0 <= d.hard_weight <= 1, "it is a share", "set `hard_weight=0.5`"),
        "beta": (0 < d.beta < 1, "it must be between 0 and 1", "set `beta=0.5`, or `divergence` to a KL"),
        "hidden_weight": (d.hidden_weight >= 0, "a weight is not negative", "set `hidden_weight=1.0`"),
        "attention_weight": (d.attention_weight >= 0, "a weight is not negative", "set `attention_weight=1.0`"),
        "layer_map": (all(i >= 1 for i in d.layer_map), "layers are counted from 1", "leave it empty, or `(2, 4, 6)`"),
        "target_tokens": (d.target_tokens >= 1, "it must be at least 1", "set `target_tokens=256`"),
        "target_beams": (d.target_beams >= 1, "it must be at least 1", "set `target_beams=1`"),
        "top_k": (d.top_k >= 1, "it must be at least 1", "set `top_k=64`"),
        "positions_at_once": (d.positions_at_once > 0, "it must be at least 1", "set `positions_at_once=1024`"),
    }
    found = [
        error("distillation-range", f"`{name}` of `Distillation` is {getattr(d, name)}", why, fix)
        for name, (fine, why, fix) in rules.items()
        if not fine
    ]
    if d.cache is not None and d.targets == "labels" and (d.hidden_weight > 0 or d.attention_weight > 0):
        seen, why = (
            "`cache` with `hidden_weight` or `attention_weight`",
            "the cache holds answers, not what lies inside",
        )
        found.append(error("distillation-cache-states", seen, why, "leave `cache` out, or set both weights to 0"))
    if d.targets == "teacher" and d.cache is None:
        seen, why = "`targets: teacher` without `cache`", "what the teacher writes has to lie somewhere"
        found.append(error("distillation-targets-cache", seen, why, "set `cache` to a folder, and fill it by `tunekit teach plan.yaml`"))  # fmt: skip
    return found


def support_fault(d: Any, task: Task, *, given: bool) -> Finding | None:
    """Why these settings cannot teach a task.

    Args:
        d: A `Distillation`.
        task: The task.
        given: Whether a live teacher was handed over.
    """
    if d.targets == "teacher" and task.name not in ("causal-lm", "seq2seq"):
        seen = f"`targets: teacher` with {task}"
        return error("distillation-targets-task", seen, "there is no text to write", "set `targets: labels`")
    if given:
        return None
    if d.teacher is None:
        return error(
            "distillation-no-teacher", "`teacher` of `Distillation` is null", "nobody teaches",
            "set `teacher` to a folder or hub id, or hand a model over by `taught_by`",
        )  # fmt: skip
    for name in (d.teacher, d.teacher_adapter):
        if name is not None and _is_missing_folder(name, hub=name is d.teacher):
            return error(
                "distillation-teacher-missing", f"teacher {name!r}", "no such folder",
                "check the path, or give a hub id such as `owner/name`",
            )  # fmt: skip
    return None


def _is_missing_folder(name: str, hub: bool) -> bool:
    return (not hub or name.startswith((".", "/", "~"))) and not Path(name).expanduser().is_dir()


def missing_teacher(fault: Finding) -> TunekitError:
    """The error of a fault."""
    return (MissingError if fault.code == "distillation-teacher-missing" else UnsupportedError)(fault)
