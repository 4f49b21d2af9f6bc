"""Advice as a page of its own: the plans, their memory and time, the rows they are for, and what was rejected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunekit.advice_text import method_text, rate
from tunekit.report import charts
from tunekit.report.advice_view import advice_view, entry_of, memory_bars
from tunekit.report.svg import INK, SERIES, page_svg
from tunekit.report.words import number, size, time

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BARS, _MOST_CLASSES = 8, 12
_ONLY_WHERE_THERE = ("num_experts", "num_eval_examples", "num_unlabelled", "supervised_tokens", "own_loss")
"""Facts that are left out where they are nothing."""


def advice_page_view(advice: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template names.

    Args:
        advice: `Advice.to_dict()`.
    """
    workload = advice.get("workload", {})
    model, data, device = workload.get("model", {}), workload.get("data", {}), workload.get("hardware", {})
    entries = [e for e in map(entry_of, advice.get("ranked", [])) if e is not None]
    bars = memory_bars({}, advice)
    kind = model.get("model_type") or "this"
    task = workload.get("task", {})
    task_name = task.get("name", "") if isinstance(task, Mapping) else str(task)
    length = entries[0].plan.max_length if entries else None
    return {
        "title": f"How to fine-tune a {kind} model for {task_name}",
        "subtitle": _question(model, data, device, workload.get("goal", "")),
        "tiles": _tiles(entries),
        "advice": advice_view(advice),
        "memory": charts.memory(bars, device.get("memory_bytes"), device.get("name", "the device")) if bars else None,
        "memory_rows": [(b.name, [(part, size(n)) for part, n in b.parts.items()]) for b in bars],
        "device": f"{device['name']}, {size(device['memory_bytes'])}" if device else "",
        "times": _times(entries) if any(e.duration for e in entries) else None,
        "lengths": _lengths(data.get("lengths") or [], length) if len(set(data.get("lengths") or [])) > 1 else None,
        "labels": _labels(data) if data.get("class_counts") else None,
        "label_note": _label_note(data),
        "facts": _facts(model, data, device),
        "plan": entries[0].plan.to_yaml() if entries else "",
    }


def _question(model: Mapping[str, Any], data: Mapping[str, Any], device: Mapping[str, Any], goal: str) -> str:
    parts = [
        f"{number(model.get('num_parameters'))} parameters ({model.get('side')}, {model.get('num_layers')} layers)",
        f"{number(data.get('num_examples'))} rows",
        str(device.get("name", "")),
        f"goal: {goal}",
    ]
    return "; ".join(p for p in parts if p)


def _tiles(entries: list[Any]) -> list[dict[str, str]]:
    if not entries:
        return []
    best = entries[0]
    tiles = [
        {
            "name": "first choice",
            "value": method_text(best.plan),
            "note": f"learning rate {rate(best.plan.learning_rate)}",
        }
    ]
    if best.memory is not None:
        low, high = best.memory.interval
        tiles.append(
            {"name": "peak memory", "value": size(best.memory.device_bytes), "note": f"{size(low)} to {size(high)}"}
        )
    if best.duration is not None:
        low, high = best.duration.interval
        tiles.append(
            {"name": "time", "value": time(best.duration.total_seconds), "note": f"{time(low)} to {time(high)}"}
        )
    return tiles


def _times(entries: list[Any]) -> str:
    rows = [(method_text(e.plan), e.duration) for e in entries if e.duration is not None][:_MOST_BARS]
    unit, scale = _unit(max(d.interval[1] for _, d in rows))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        charts.names_above(axes, [name for name, _ in rows])
        for i, (_, d) in enumerate(rows):
            axes.barh(i, d.total_seconds / scale, height=0.42, color=SERIES[0], linewidth=0)
            low, high = (n / scale for n in d.interval)
            axes.plot([low, high], [i, i], color=INK, linewidth=1.2, marker="|", markersize=6)
        axes.set_xlim(0, 1.05 * max(d.interval[1] for _, d in rows) / scale)
        axes.set_xlabel(unit)

    said = "; ".join(f"{name}: {time(d.total_seconds)}" for name, d in rows)
    return page_svg("times", 0.7 + 0.55 * len(rows), draw, "Predicted time of each plan", said)


def _unit(seconds: float) -> tuple[str, float]:
    return ("hours", 3600.0) if seconds >= 7200 else ("minutes", 60.0) if seconds >= 120 else ("seconds", 1.0)


def _lengths(lengths: list[int], limit: int | None) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.hist(lengths, bins=min(30, max(5, len(set(lengths)))), color=SERIES[0], linewidth=0)
        if limit is not None and limit <= 1.5 * max(lengths):
            axes.axvline(limit, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_xlabel("tokens a row")
        axes.set_ylabel("rows")

    middle = sorted(lengths)[len(lengths) // 2]
    said = f"{len(lengths)} rows: shortest {min(lengths)}, middle {middle}, longest {max(lengths)} tokens"
    return page_svg("lengths", 2.4, draw, "Lengths of the rows", said)


def _labels(data: Mapping[str, Any]) -> str:
    names = [str(n) for n in data.get("label_names") or range(len(data["class_counts"]))]
    rows = sorted(zip(names, data["class_counts"], strict=False), key=lambda r: -r[1])
    shown = rows if len(rows) <= _MOST_CLASSES else [*rows[: _MOST_CLASSES // 2], *rows[-_MOST_CLASSES // 2 :]]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        charts.names_above(axes, [name for name, _ in shown])
        for i, (_, count) in enumerate(shown):
            axes.barh(i, count, height=0.42, color=SERIES[2], linewidth=0)
            axes.annotate(f"{count:,}", (count, i), textcoords="offset points", xytext=(5, 0), va="center", color=INK)
        axes.set_xlim(0, 1.2 * max(count for _, count in shown))
        axes.set_xlabel("rows")

    said = "; ".join(f"{name} {count}" for name, count in shown)
    return page_svg("labels", 0.7 + 0.5 * len(shown), draw, "Rows of each class", said)


def _label_note(data: Mapping[str, Any]) -> str:
    count = len(data.get("class_counts") or [])
    return (
        f"The {_MOST_CLASSES // 2} largest and smallest of {count} classes."
        if count > _MOST_CLASSES
        else "Training rows by class."
    )


def _facts(
    model: Mapping[str, Any], data: Mapping[str, Any], device: Mapping[str, Any]
) -> list[tuple[str, list[tuple[str, str]]]]:
    chosen: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
        "Model": (model, ("name", "model_type", "side", "num_parameters", "num_layers", "hidden_size", "vocab_size", "context_length", "num_experts")),
        "Rows": (data, ("num_examples", "num_eval_examples", "num_labels", "supervised_tokens", "num_duplicates", "num_leaked", "num_conflicts", "num_unlabelled", "own_loss")),
        "Hardware": (device, ("name", "num_devices", "num_machines", "memory_bytes", "bf16", "interconnect", "host_memory_bytes")),
    }  # fmt: skip
    groups = []
    for title, (values, names) in chosen.items():
        rows = [
            (n.removesuffix("_bytes").removeprefix("num_").replace("_", " "), size(values[n]) if n.endswith("_bytes") else number(values[n]))
            for n in names
            if values.get(n) not in (None, "", []) and not (n in _ONLY_WHERE_THERE and not values[n])
        ]  # fmt: skip
        if rows:
            groups.append((title, rows))
    return groups
