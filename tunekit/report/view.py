"""A run's record and the advice before it as what the page shows: words, tables and charts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.advice_text import method_text, settings, short_name
from tunekit.errors import TunekitError
from tunekit.plan import Plan
from tunekit.record_text import steps_text, weights_text
from tunekit.report import charts
from tunekit.report.advice_view import advice_view, memory_bars
from tunekit.report.confusion import confusion_view
from tunekit.report.fusion_view import fusion_view
from tunekit.report.words import number, off, size, time

Row = tuple[str, str]


def view(record: Mapping[str, Any], advice: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything that the template names; what the record does not have is None or empty there.

    Args:
        record: What `RunRecord` wrote, perhaps with `scores` (name, metric, value) and `samples` (text, predicted, ...).
        advice: `Advice.to_dict()`, or None.
    """
    plan = plan_of(record.get("plan"))
    pairs = pairs_of(record)
    scores = [(s["name"], s["value"]) for s in record.get("scores", [])]
    metric = record["scores"][0]["metric"] if scores else ""
    curve = _curves(record)
    bars = memory_bars(record, advice)
    device = (advice or {}).get("workload", {}).get("hardware", {})
    return {
        "title": title(record, plan),
        "subtitle": settings(plan) if plan is not None else "",
        "finished": record.get("status") == "finished",
        "kept": _kept(record),
        "tiles": _tiles(record, metric),
        "scores": charts.scores(scores, metric) if scores else None,
        "score_rows": record.get("scores", []),
        "memory": charts.memory(bars, device.get("memory_bytes"), device.get("name", "the device")) if bars else None,
        "memory_rows": [(b.name, [(part, size(n)) for part, n in b.parts.items()]) for b in bars],
        "device": f"{device['name']}, {size(device['memory_bytes'])}" if device else "",
        "curves": curve,
        "fusion": fusion_view(record),
        "evaluations": _evaluations(record),
        "prediction": charts.prediction(pairs) if pairs else None,
        "prediction_rows": prediction_rows(record),
        "advice": advice_view(advice) if advice else None,
        "trained_tokens": record.get("trained_tokens", []),
        "confusion": confusion_view(record.get("confusion")),
        "samples": record.get("samples", []),
        "sample_names": _sample_names(record.get("samples", []), record.get("plan")),
        "facts": _facts(record),
        "plan": plan.to_yaml() if plan is not None else "",
    }


def _kept(record: Mapping[str, Any]) -> str:
    """How far the run went and whose weights it kept, where that is not the plain end of it."""
    steps, which = record.get("steps") or {}, weights_text(record)
    if not which or steps["kept"] == steps["done"] == steps["planned"]:
        return ""
    scored = "; the scores after training are theirs" if record.get("final") else ""
    return f"The run took {steps_text(record)}. The weights it kept are {which}{scored}."


def _sample_names(samples: list[Mapping[str, Any]], plan: Any) -> dict[str, Any]:
    """Which columns the table of samples has."""
    writes = isinstance(plan, Mapping) and plan.get("task") in ("causal-lm", "seq2seq")
    return {
        "expected": any("expected" in s for s in samples),
        "predicted": "written" if writes else "predicted",
        "probability": any("probability" in s for s in samples),
    }


def plan_of(data: Mapping[str, Any] | None) -> Plan | None:
    """The plan of a record, None where this version cannot read it: a report never fails over an old plan."""
    try:
        return Plan.from_dict(data) if data else None
    except TunekitError:
        return None


def title(record: Mapping[str, Any], plan: Plan | None) -> str:
    """What was done to what."""
    if plan is None:
        return "A training run"
    return f"{method_text(plan)} on {record.get('model_name') or short_name(plan.model)}"


def _tiles(record: Mapping[str, Any], metric: str) -> list[dict[str, str]]:
    """The figures to see first: what, how much, and a word on it."""
    tiles = []
    scored = record.get("scores", [])
    if scored:
        others = [f"{s['name']} {s['value']:.3f}" for s in scored[1:]]
        tiles.append({"name": metric, "value": f"{scored[0]['value']:.3f}", "note": ", ".join(others)})
    elif record.get("best"):
        best = record["best"]
        tiles.append(
            {
                "name": f"best {best['metric'].removeprefix('eval_')}",
                "value": number(best["value"]),
                "note": f"step {best['step']}",
            }
        )
    parameters = record.get("parameters") or {}
    if parameters:
        share = 100 * parameters["trainable"] / max(1, parameters["total"])
        tiles.append(
            {
                "name": "trainable parameters",
                "value": number(parameters["trainable"]),
                "note": f"{share:.2g} % of the model",
            }
        )
    measured = record.get("measured") or {}
    if measured.get("memory"):
        tiles.append({"name": "peak memory", "value": size(measured["memory"]["device_bytes"]), "note": "measured"})
    if measured.get("duration"):
        took = measured["duration"]
        of = "" if ran_whole(record) else f" of {number(record['steps']['planned'])}"
        note = f"{number(took['num_steps'])}{of} steps, with evaluating and saving"
        tiles.append({"name": "training", "value": time(took["wall_seconds"]), "note": note})
    return tiles


def pairs_of(record: Mapping[str, Any]) -> list[charts.Pair]:
    """What was both predicted and measured."""
    predicted, measured, pairs = record.get("predicted") or {}, record.get("measured") or {}, []
    if predicted.get("memory") and measured.get("memory"):
        p, m = predicted["memory"], measured["memory"]
        low, high = (n / charts.GIB for n in p["interval"])
        pairs.append(
            charts.Pair(
                name="peak memory", unit="GiB", predicted=p["device_bytes"] / charts.GIB, interval=(low, high),
                measured=m["device_bytes"] / charts.GIB,
            )
        )  # fmt: skip
    if predicted.get("duration") and measured.get("duration"):
        p, m = predicted["duration"], measured["duration"]
        scale = p["step_seconds"] / p["total_seconds"] if p["total_seconds"] else 0.0
        each = (p["interval"][0] * scale, p["interval"][1] * scale)
        figures = [("one step", p["step_seconds"], each, m["step_seconds"])]
        # A part of the steps says nothing about a prediction for all of them.
        if ran_whole(record):
            figures.append(("all steps", p["total_seconds"], p["interval"], m["total_seconds"]))
        for name, figure, interval, value in figures:
            pairs.append(charts.Pair(name=name, unit="s", predicted=figure, interval=tuple(interval), measured=value))
    return pairs


def ran_whole(record: Mapping[str, Any]) -> bool:
    """Whether all planned steps were taken in one go: neither stopped early nor resumed.

    Example:
        >>> ran_whole({"steps": {"planned": 90, "resumed_at": 0, "done": 30}}), ran_whole({})
        (False, True)
    """
    steps = record.get("steps") or {}
    return bool(steps.get("done", 0) - steps.get("resumed_at", 0) == steps.get("planned", 0))


def prediction_rows(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """`pairs_of` in words."""
    rows = []
    for p in pairs_of(record):
        show = (lambda v: f"{v:.2f} GiB") if p.unit == "GiB" else time
        rows.append(
            {
                "name": p.name,
                "predicted": show(p.predicted),
                "interval": f"{show(p.interval[0])} to {show(p.interval[1])}",
                "measured": show(p.measured),
                "off": off(p.predicted, p.measured) if p.measured else "",
                "inside": "inside" if p.interval[0] <= p.measured <= p.interval[1] else "outside",
            }
        )
    return rows


def _curves(record: Mapping[str, Any]) -> str | None:
    train = points(record.get("logs", []), "loss")
    held_out = points(record.get("evaluations", []), "eval_loss")
    best = record.get("best") or {}
    metric = str(best.get("metric") or "").removeprefix("eval_")
    if metric in ("", "loss"):
        known = {k for row in record.get("evaluations", []) for k in row}
        metric = next((m for m in ("accuracy", "f1", "spearman") if f"eval_{m}" in known), "")
    scores = points(record.get("evaluations", []), f"eval_{metric}") if metric else []
    # What is best the run itself has said, where it is of this metric: of some the smallest is.
    own = best.get("step") if metric == str(best.get("metric") or "").removeprefix("eval_") else None
    top = next((p for p in scores if p[0] == own), None) or max(scores, key=lambda p: p[1], default=None)
    return charts.curves(train, held_out, metric, scores, top) if train or held_out else None


def points(rows: list[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have one."""
    return sorted({row["step"]: row[key] for row in rows if row.get(key) is not None}.items())


def _evaluations(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The evaluations as a table: the chart in words."""
    skipped = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "step", "epoch")
    rows = [(number(row["step"]), row) for row in record.get("evaluations", [])]
    rows += [("weights kept", record["final"])] if record.get("final") else []
    names = list(dict.fromkeys(k for _, row in rows for k in row if k not in skipped))
    if not names:
        return None
    return {
        "names": [n.removeprefix("eval_").replace("_", " ") for n in names],
        "rows": [[when, *(number(row.get(n)) for n in names)] for when, row in rows],
    }


def _facts(record: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """Environment, data and versions as small tables."""
    named = {
        "environment": "Machine",
        "data": "Rows",
        "steps": "Steps",
        "arguments": "Settings",
        "versions": "Versions",
    }
    groups = []
    for key, name in named.items():
        rows = [
            (k.removesuffix("_bytes").replace("_", " "), size(v) if k.endswith("_bytes") else number(v))
            for k, v in (record.get(key) or {}).items()
            if v is not None
        ]
        if rows:
            groups.append((name, rows))
    return groups
