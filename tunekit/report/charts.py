"""The charts of a report, each a pure function from plain figures to an `<svg>` with words beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.report.svg import GRID, INK, MUTED, PAPER, SERIES, page_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GIB = 2**30
REST = "allocator and process"
"""The part of a bar that is no tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One plan's memory."""

    name: str
    parts: Mapping[str, float]
    """Bytes by part."""
    interval: tuple[float, float]
    """Low and high of the sum, in bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One figure, predicted and measured."""

    name: str
    unit: str
    predicted: float
    interval: tuple[float, float]
    measured: float


def scores(rows: Sequence[tuple[str, float]], metric: str) -> str:
    """Scores side by side; the first is the run's own."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names_above(axes, [name for name, _ in rows])
        for i, (_, value) in enumerate(rows):
            axes.barh(i, value, height=0.42, color=SERIES[0] if i == 0 else MUTED, linewidth=0)
            axes.annotate(f"{value:.3f}", (value, i), textcoords="offset points", xytext=(5, 0), va="center", color=INK)
        axes.set_xlim(0, 1.12 * max(1.0, *(value for _, value in rows)))
        axes.set_xlabel(metric)

    said = "; ".join(f"{name} {value:.3f}" for name, value in rows)
    return page_svg("scores", 0.7 + 0.55 * len(rows), draw, f"{metric.capitalize()} beside the baseline", said)


def memory(bars: Sequence[Bar], device_bytes: float | None, device: str) -> str:
    """Memory by part as stacked bars against the device."""
    parts = sorted(dict.fromkeys(part for bar in bars for part in bar.parts), key=lambda part: part == REST)
    colour = {part: SERIES[i % len(SERIES)] for i, part in enumerate(parts)} | {REST: MUTED}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names_above(axes, [bar.name for bar in bars])
        for i, bar in enumerate(bars):
            left = 0.0
            for part, size in bar.parts.items():
                axes.barh(i, size / GIB, left=left / GIB, height=0.42, color=colour[part], linewidth=0)
                left += size
            low, high = (n / GIB for n in bar.interval)
            axes.plot([low, high], [i, i], color=INK, linewidth=1.2, marker="|", markersize=6)
        _device_line(axes, bars, device_bytes, device)
        axes.set_xlabel("GiB")
        handles = [axes.barh(0, 0, color=colour[part], label=part) for part in parts]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1, columnspacing=1.2)
        axes.margins(y=0.05)

    said = "; ".join(
        f"{bar.name}: " + ", ".join(f"{p} {s / GIB:.2f} GiB" for p, s in bar.parts.items()) for bar in bars
    )
    height = 0.9 + 0.55 * len(bars) + 0.22 * -(-len(parts) // 3)
    return page_svg("memory", height, draw, f"Predicted peak memory by part on {device}", said)


def _device_line(axes: Axes, bars: Sequence[Bar], device_bytes: float | None, device: str) -> None:
    """The device's memory as a line, or as words where it lies far beyond the bars."""
    longest = max(max(sum(bar.parts.values()), bar.interval[1]) for bar in bars) / GIB
    end = 1.12 * longest
    if device_bytes is not None and device_bytes / GIB <= 2.5 * longest:
        end = max(end, 1.04 * device_bytes / GIB)
        axes.axvline(device_bytes / GIB, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_xlim(0, end)


def curves(
    train: Sequence[tuple[float, float]], held_out: Sequence[tuple[float, float]], metric: str,
    scores: Sequence[tuple[float, float]], best: tuple[float, float] | None,
) -> str:  # fmt: skip
    """Losses over the steps, and below them the metric with its best point."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2 if scores else 1, 1, sharex=True, squeeze=False)[:, 0]
        _line(axes[0], train, "training", SERIES[0], marker=None)
        _line(axes[0], held_out, "held out", SERIES[1], marker="o")
        axes[0].set_title("loss")
        figure.legend(loc="outside upper left", ncols=2, handlelength=1)
        axes[0].margins(y=0.08)
        axes[0].set_ylim(bottom=0)
        if scores:
            _line(axes[1], scores, "", SERIES[1], marker="o")
            axes[1].set_title(f"held-out {metric}" + (", best ringed" if best else ""))
        if scores and best:
            axes[1].plot(*best, marker="o", markersize=11, markerfacecolor="none", markeredgecolor=INK, linewidth=0)
            below = best[1] > sum(y for _, y in scores) / len(scores)
            axes[1].annotate(
                f"{best[1]:.3f}",
                best,
                textcoords="offset points",
                xytext=(0, -18 if below else 12),
                ha="center",
                color=INK,
            )
            axes[1].margins(x=0.08, y=0.25)
        axes[-1].set_xlabel("optimizer step")
        for one in axes:
            one.grid(axis="y")

    said = f"training loss {_ends(train)}; held-out loss {_ends(held_out)}; {metric} {_ends(scores)}"
    said += f"; best {metric} {best[1]:.3f} at step {best[0]:.0f}" if best else ""
    return page_svg("curves", 4.4 if scores else 2.6, draw, "Loss and metric over the run", said)


def prediction(pairs: Sequence[Pair]) -> str:
    """Predicted with its interval against measured, one line each."""

    def draw(figure: Figure) -> None:
        rows = figure.subplots(len(pairs), 1, squeeze=False)[:, 0]
        for axes, pair in zip(rows, pairs, strict=True):
            low, high = pair.interval
            axes.barh(0, high - low, left=low, height=0.5, color=SERIES[0], alpha=0.25, linewidth=0)
            axes.plot(pair.predicted, 0, marker="|", markersize=16, markeredgewidth=2.5, color=SERIES[0])
            axes.plot(pair.measured, 0, marker="D", markersize=7, color=SERIES[1], markeredgecolor=PAPER)
            axes.set_title(f"{pair.name}, {pair.unit}")
            axes.set_xlim(0, 1.1 * max(high, pair.measured, pair.predicted))
            axes.set_ylim(-0.6, 0.6)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
        _prediction_legend(figure)

    said = "; ".join(
        f"{p.name}: predicted {p.predicted:.3g} {p.unit} ({p.interval[0]:.3g} to {p.interval[1]:.3g}), measured {p.measured:.3g}"
        for p in pairs
    )
    return page_svg("prediction", 0.5 + 0.85 * len(pairs), draw, "Predicted against measured", said)


def _prediction_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=SERIES[0], marker="|", markersize=12, markeredgewidth=2.5, linewidth=0, label="predicted"),
        Patch(facecolor=SERIES[0], alpha=0.25, linewidth=0, label="its interval"),
        Line2D([], [], color=SERIES[1], marker="D", markersize=7, linewidth=0, label="measured"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1, columnspacing=1.2)


def names_above(axes: Axes, names: Sequence[str]) -> None:
    """One bar a row with its name above it: a margin for names would leave a phone no room for the bars."""
    for i, name in enumerate(names):
        axes.text(0, i - 0.3, name, va="bottom", color=INK)
    axes.set_ylim(len(names) - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_color(GRID)


def _line(axes: Axes, points: Sequence[tuple[float, float]], label: str, colour: str, marker: str | None) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=colour, marker=marker, markersize=4)


def _ends(points: Sequence[tuple[float, float]]) -> str:
    return f"from {points[0][1]:.3f} to {points[-1][1]:.3f}" if points else "not measured"
