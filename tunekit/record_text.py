"""What a run's record says in words: its scores, how far it went, and whose weights it kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOT_A_SCORE = ("runtime", "per_second", "epoch", "model_preparation_time")


def scores_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the last evaluation by metric, without times: of the weights that were kept, where those were evaluated.

    Example:
        >>> scores_of({"final": {"step": 20, "eval_accuracy": 0.9, "eval_runtime": 3.0}})
        {'accuracy': 0.9}
    """
    last = record.get("final") or next(reversed(record.get("evaluations") or []), None) or {}
    return {
        k.removeprefix("eval_"): v
        for k, v in last.items()
        if k.startswith("eval_") and not any(part in k for part in _NOT_A_SCORE)
    }


def steps_text(record: Mapping[str, Any]) -> str:
    """How many steps were taken, and of how many where the run ended before.

    Example:
        >>> steps_text({"steps": {"planned": 184, "done": 69}}), steps_text({"steps": {"planned": 4, "done": 4}})
        ('69 of 184 steps', '4 steps')
    """
    steps = record.get("steps") or {}
    done, planned = steps.get("done", 0), steps.get("planned", 0)
    return f"{done:,} steps" if done >= planned else f"{done:,} of {planned:,} steps"


def weights_text(record: Mapping[str, Any]) -> str:
    """Of which step the weights are that the run ended with; empty where that was not kept.

    Example:
        >>> best = {"metric": "eval_accuracy", "value": 0.9, "step": 23}
        >>> weights_text({"steps": {"done": 69, "kept": 23}, "best": best})
        'those of step 23, the best by accuracy'
        >>> weights_text({"steps": {"done": 69, "kept": 69}, "best": None})
        'those of the last step'
    """
    steps, best = record.get("steps") or {}, record.get("best") or {}
    kept = steps.get("kept")
    if kept is None:
        return ""
    which = "the last step" if kept >= steps["done"] else f"step {kept:,}"
    by = str(best.get("metric") or "loss").removeprefix("eval_").replace("_", " ")
    return f"those of {which}" + (f", the best by {by}" if best.get("step") == kept else "")
