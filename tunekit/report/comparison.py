"""Several runs side by side: scores, costs, curves, and where their plans differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.advice_text import method_text, settings
from tunekit.record_text import scores_of, steps_text, weights_text
from tunekit.report.svg import SERIES, page_svg
from tunekit.report.view import plan_of, points, title
from tunekit.report.words import number, size, time

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SMALLER_IS_BETTER = ("loss", "perplexity", "mse")
_LEAD = ("accuracy", "f1", "spearman", "f1_micro", "exact", "loss")
"""The metric that leads, the first of these that every run with scores has."""
_UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))
_NOT_SETTINGS = ("kind", "schema", "output_dir", "data.fingerprint", "data.label_names")


def comparison_view(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Everything that the template names.

    Args:
        records: What `RunRecord` wrote, one a run.
        names: What to call each.
    """
    scores = [scores_of(r) for r in records]
    metrics = list(dict.fromkeys(m for s in scores for m in s))
    lead = next((m for m in _LEAD if m in metrics and all(m in s for s in scores if s)), metrics[0] if metrics else "")
    metrics = sorted(metrics, key=lambda m: m != lead)[:4]
    costs = [_costs(r) for r in records]
    cells = [
        *((m.replace("_", " "), [s.get(m) for s in scores], number, _smaller(m)) for m in metrics),
        ("trained parameters", [c["trained"] for c in costs], number, True),
        ("peak memory", [c["memory"] for c in costs], size, True),
        ("one step", [c["step"] for c in costs], time, True),
        # Runs of different lengths differ in time by what was asked of them: none is the best then.
        ("training", [c["seconds"] for c in costs], time, True if len({c["steps"] for c in costs}) == 1 else None),
    ]
    cells = [c for c in cells if any(v is not None for v in c[1])]
    plans = [plan_of(r.get("plan")) for r in records]
    same = len({r.get("model_name") or (p.model if p else "") for r, p in zip(records, plans, strict=True)}) == 1
    return {
        "title": f"{len(records)} runs side by side",
        "subtitle": f"{plans[0].task} with {title(records[0], plans[0]).partition(' on ')[2]}"
        if same and plans[0]
        else "",
        "columns": [name for name, *_ in cells],
        "rows": [
            {
                "name": names[i],
                "colour": i % len(SERIES) + 1,
                "settings": f"{method_text(p)}, {settings(p)}" if p else "without a plan",
                "ended": _ended(records[i]),
                "cells": [_cell(name, values, i, show, smaller) for name, values, show, smaller in cells],
            }
            for i, p in enumerate(plans)
        ],
        "differences": _differences(records),
        "curves": _curves(records, names, lead),
        **_trade(names, [s.get(lead) for s in scores], costs, lead),
    }


def _smaller(metric: str) -> bool:
    return metric.rpartition("_")[2] in _SMALLER_IS_BETTER


def _ended(record: Mapping[str, Any]) -> str:
    """How far a run went and whose weights its scores are of."""
    if not record.get("steps"):
        return ""
    which = weights_text(record)
    return steps_text(record) + (f"; scores of the weights kept, {which}" if which else "")


def _cell(name: str, values: list[Any], i: int, show: Any, smaller: bool | None) -> dict[str, Any]:
    """One run's value; `smaller`: whether the smallest is the best, None where none is."""
    known = [v for v in values if v is not None]
    # As shown: what a reader cannot tell apart is equally good.
    told = smaller is not None and len({show(v) for v in known}) > 1
    best = show((min if smaller else max)(known)) if told else None
    text = "-" if values[i] is None else show(values[i])
    return {"name": name, "text": text, "best": text == best}


def _costs(record: Mapping[str, Any]) -> dict[str, float | None]:
    measured = record.get("measured") or {}
    memory, duration = measured.get("memory") or {}, measured.get("duration") or {}
    return {
        "trained": (record.get("parameters") or {}).get("trainable"),
        "memory": memory.get("device_bytes"),
        "seconds": duration.get("wall_seconds"),
        "step": duration.get("step_seconds"),
        "steps": duration.get("num_steps"),
    }


def _differences(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The settings that are not the same in every plan, places of files aside; a run without a plan differs in nothing."""
    flat = [_flat(_short_of_method(r["plan"], records)) if r.get("plan") else None for r in records]
    names = dict.fromkeys(k for f in flat for k in f or ())
    lines = []
    for name in names:
        told = {repr(f.get(name, "")) for f in flat if f is not None}
        if name not in _NOT_SETTINGS and len(told) > 1:
            values = [_written(f[name]) if f is not None and name in f else "-" for f in flat]
            lines.append({"name": name, "values": values})
    return lines


def _written(value: Any) -> str:
    """A setting as a plan's file has it, since that is where it is changed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _short_of_method(plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The plan's values; where the methods are not the same one, the method by its name, since its settings compare with nothing."""
    kinds = {(r["plan"].get("method") or {}).get("kind") for r in records if r.get("plan")}
    method = plan.get("method") or {}
    return {**plan, "method": method.get("kind", "")} if len(kinds) > 1 else dict(plan)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for k, v in values.items():
        found |= _flat(v, f"{before}{k}.") if isinstance(v, Mapping) else {f"{before}{k}": v}
    return found


def _curves(records: Sequence[Mapping[str, Any]], names: Sequence[str], metric: str) -> str | None:
    losses = [points(r.get("logs", []), "loss") for r in records]
    held = [points(r.get("evaluations", []), f"eval_{metric}") if metric else [] for r in records]
    if not any(losses) and not any(held):
        return None
    both = any(len(h) > 1 for h in held)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2 if both else 1, 1, sharex=True, squeeze=False)[:, 0]
        for i, name in enumerate(names):
            colour = SERIES[i % len(SERIES)]
            if losses[i]:
                axes[0].plot(*zip(*losses[i], strict=True), color=colour, label=name)
            if both and held[i]:
                axes[1].plot(*zip(*held[i], strict=True), color=colour, marker="o", markersize=4)
        axes[0].set_title("training loss")
        axes[0].margins(y=0.08)
        axes[0].set_ylim(bottom=0)
        if both:
            axes[1].set_title(f"held-out {metric.replace('_', ' ')}")
        figure.legend(loc="outside upper left", ncols=2, handlelength=1)
        axes[-1].set_xlabel("optimizer step")
        for one in axes:
            one.grid(axis="y")

    said = "; ".join(
        f"{n}: training loss from {p[0][1]:.3f} to {p[-1][1]:.3f}" for n, p in zip(names, losses, strict=True) if p
    )
    height = (4.4 if both else 2.6) + 0.2 * -(-len(names) // 2)
    return page_svg("curves", height, draw, "Loss and metric of the runs", said)


def _trade(
    names: Sequence[str], scores: Sequence[Any], costs: Sequence[Mapping[str, Any]], metric: str
) -> dict[str, Any]:
    """Score against memory and against time, where both are known of two runs at least."""
    longest = max((c["seconds"] or 0 for c in costs), default=0)
    name, seconds = next((u for u in _UNITS if longest >= 2 * u[1]), _UNITS[-1])
    kinds = [("memory", "peak memory, GiB", 2**30), ("seconds", f"training, {name}", seconds)]
    drawn = [
        (
            label,
            [
                (i, c[key] / scale, s)
                for i, (c, s) in enumerate(zip(costs, scores, strict=True))
                if c[key] and s is not None
            ],
        )
        for key, label, scale in kinds
    ]
    drawn = [(label, dots) for label, dots in drawn if len(dots) > 1]
    if not drawn:
        return {"trade": None, "trade_note": ""}

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(drawn), squeeze=False, sharey=True)[0]
        for axes, (label, dots) in zip(panels, drawn, strict=True):
            for i, x, y in dots:
                # The later ones smaller, so that none is hidden where two fall on one spot.
                size = 7 + 5 * (len(names) - 1 - i) / len(names)
                axes.plot(x, y, marker="o", markersize=size, color=SERIES[i % len(SERIES)], linewidth=0)
            axes.set_xlabel(label)
            axes.set_xlim(0, 1.15 * max(x for _, x, _ in dots))
            axes.margins(y=0.2)
            axes.grid(axis="y")
        panels[0].set_ylabel(metric.replace("_", " "))

    said = "; ".join(f"{names[i]}: {metric} {y:.3f} at {x:.2f} ({label})" for label, dots in drawn for i, x, y in dots)
    return {
        "trade": page_svg("trade", 2.6, draw, f"{metric} against memory and time", said),
        "trade_note": f"Each run's {metric.replace('_', ' ')} against what it took; colours as in the table.",
    }
