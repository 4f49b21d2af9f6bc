"""Which class was taken for which: a chart where the classes are few, the worst pairs where they are many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunekit.report.svg import INK, MUTED, PAPER, SERIES, page_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_CLASSES, _WORST = 12, 8


def confusion_view(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the template shows of a record's `confusion`; None where there is none.

    Example:
        >>> found = {"names": ["no", "yes"], "counts": [[0, 0, 8], [0, 1, 2], [1, 1, 10]]}
        >>> shown = confusion_view(found)
        >>> shown["said"], shown["worst"]
        ('18 of 20 held-out rows (90.0 %) were taken for what they are.', [{'expected': 'no', 'predicted': 'yes', 'count': 2}])
    """
    if not found or not found.get("counts"):
        return None
    names, counts = found["names"], {(i, j): n for i, j, n in found["counts"]}
    rows, right = sum(counts.values()), sum(n for (i, j), n in counts.items() if i == j)
    wrong = sorted(((n, i, j) for (i, j), n in counts.items() if i != j), key=lambda x: (-x[0], x[1], x[2]))
    return {
        "said": f"{right:,} of {rows:,} held-out rows ({100 * right / rows:.1f} %) were taken for what they are.",
        "chart": _chart(names, counts) if len(names) <= _MOST_CLASSES else None,
        "worst": [{"expected": names[i], "predicted": names[j], "count": n} for n, i, j in wrong[:_WORST]],
    }


def _chart(names: list[str], counts: Mapping[tuple[int, int], int]) -> str:
    size = len(names)
    most = max(counts.values())
    short = [n if len(n) <= 18 else f"{n[:17]}…" for n in names]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (i, j), n in counts.items():
            colour = SERIES[0] if i == j else SERIES[1]
            axes.add_patch(_square(j, i, colour, 0.15 + 0.6 * n / most))
            axes.text(j, i, f"{n:,}", ha="center", va="center", color=INK, fontsize=9 if size <= 8 else 7)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_xticks(range(size), short, rotation=90 if max(map(len, short)) * size > 30 else 0)
        axes.set_yticks(range(size), short)
        axes.set_xlabel("taken for")
        axes.set_ylabel("is")
        for side in ("left", "bottom"):
            axes.spines[side].set_color(MUTED)

    said = "; ".join(f"{names[i]} taken for {names[j]}: {n}" for (i, j), n in sorted(counts.items()))
    return page_svg(
        "confusion", 1.2 + 0.08 * max(map(len, short)) + 0.32 * size, draw, "Classes and what they were taken for", said
    )


def _square(x: float, y: float, colour: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=colour, alpha=alpha, edgecolor=PAPER, linewidth=0)
