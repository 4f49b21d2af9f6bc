"""How much each layer of a fusion listens to each adapter, from the record, as a chart and as figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.report.svg import INK, MUTED, PAPER, SERIES, page_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROOM = 0.11
"""The narrowest share that its figure fits into."""
_LETTERS = 54
"""Letters that a line of the legend holds."""
_NUMBER = re.compile(r"\.(\d+)(?:\.|$)")

Rows = Sequence[tuple[str, Sequence[float]]]


def fusion_view(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Chart, table and words of a run's fusion; None where there was none."""
    found = record.get("fusion")
    if not found or not found.get("layers") or not found.get("adapters"):
        return None
    names = list(found["adapters"])
    rows = [(label, layer["shares"]) for label, layer in zip(_labels(found["layers"]), found["layers"], strict=True)]
    mean = [sum(shares[i] for _, shares in rows) / len(rows) for i in range(len(names))]
    return {
        "chart": chart(names, [*rows, ("mean", mean)]),
        "names": names,
        "rows": [(label, [f"{100 * s:.0f}" for s in shares]) for label, shares in [*rows, ("mean", mean)]],
        "even": f"{100 / len(names):.0f} %",
        "num_rows": found.get("rows"),
    }


def _labels(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """`layer 0`; with the place, and encoder or decoder, only where the layers differ in it."""
    names = [layer["layer"] for layer in layers]
    places = [n.rpartition(".")[2].replace("_", "-") for n in names]
    sides = [next((p for p in ("encoder", "decoder") if f".{p}." in f".{n}"), "") for n in names]
    numbers = [m[-1] if (m := _NUMBER.findall(n)) else "" for n in names]
    parts = [sides if len({*sides}) > 1 else None, numbers, places if len({*places}) > 1 else None]
    labels = [" ".join(filter(None, (column[i] for column in parts if column))) for i in range(len(names))]
    if len({*labels}) < len(labels) or not all(numbers):
        return names
    return labels if parts[0] else [f"layer {label}" for label in labels]


def chart(names: Sequence[str], rows: Rows) -> str:
    """One bar a layer, the lowest first, cut into the adapters' shares."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for at, (_, shares) in enumerate(rows):
            left, y = 0.0, at + (0.5 if at == len(rows) - 1 else 0.0)
            for i, share in enumerate(shares):
                axes.barh(y, share, left=left, height=0.78, color=SERIES[i % len(SERIES)], edgecolor=PAPER, linewidth=1)
                if share >= _ROOM:
                    said = f"{100 * share:.0f}"
                    axes.text(left + share / 2, y, said, ha="center", va="center_baseline", color=PAPER, fontsize=9)
                left += share
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        axes.set_ylim(len(rows), -0.6)
        axes.set_yticks([*range(len(rows) - 1), len(rows) - 0.5], [label for label, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=MUTED)
        for spine in axes.spines.values():
            spine.set_visible(False)
        handles = [axes.barh(0, 0, color=SERIES[i % len(SERIES)], label=name) for i, name in enumerate(names)]
        figure.legend(
            handles=handles, loc="outside upper left", ncols=_columns(names), handlelength=1, columnspacing=1.2,
            labelcolor=INK,
        )  # fmt: skip

    said = "; ".join(
        f"{label}: " + ", ".join(f"{n} {100 * s:.0f} %" for n, s in zip(names, shares, strict=True))
        for label, shares in rows
    )
    height = 0.45 + 0.22 * len(rows) + 0.22 * -(-len(names) // _columns(names))
    return page_svg("fusion", height, draw, "Share of each adapter by layer, in per cent", said)


def _columns(names: Sequence[str]) -> int:
    """As many columns of the legend as a phone's width holds."""
    return max(1, min(len(names), _LETTERS // (max(map(len, names)) + 5)))
