"""Matplotlib figures as SVG that lives inside a page: its colours follow the page, its text stays text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_INCHES = 5.0
"""360 points: a chart fills a phone's screen with its letters at their own size."""

INK, MUTED, GRID, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
SERIES = tuple(f"#0a0c0{i}" for i in range(1, 10))
"""Colours that stand for the page's own: matplotlib writes them, `page_svg` puts the page's variables in their place."""

_VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper",
    **{c: f"--series-{i}" for i, c in enumerate(SERIES, 1)},
}  # fmt: skip

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 11, "axes.titlesize": 11, "axes.titlelocation": "left",
    "axes.labelsize": 10, "xtick.labelsize": 10, "ytick.labelsize": 10, "legend.fontsize": 10, "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.titlecolor": INK, "xtick.color": GRID, "ytick.color": GRID,
    "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED, "axes.edgecolor": GRID, "axes.facecolor": "none",
    "figure.facecolor": "none", "savefig.facecolor": "none", "grid.color": GRID, "grid.linewidth": 0.8, "axes.grid": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "lines.linewidth": 1.8,
    "hatch.color": MUTED, "hatch.linewidth": 0.6,
}  # fmt: skip


@contextmanager
def _styled(name: str) -> Iterator[None]:
    import matplotlib

    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        yield


def page_svg(name: str, height_inches: float, draw: Callable[[Figure], None], title: str, description: str) -> str:
    """One chart as an `<svg>` element.

    Args:
        name: Unique on the page; every id inside begins with it.
        height_inches: Height for the fixed width.
        draw: Puts the chart on the figure.
        title: What it shows, for a reader who does not see it.
        description: What one reads off it.
    """
    from matplotlib.figure import Figure

    with _styled(name):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _tidied(out.getvalue(), name, title, description)


def _tidied(svg: str, name: str, title: str, description: str) -> str:
    """Without the file's head, with ids of its own, the page's colours and font, and words for who cannot see it."""
    from html import escape

    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg [^>]*>", lambda m: _head(m.group(), name), svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font: (?:[\w.]+ )*?(\d[\d.]*px) [^;\"]*", r"font: \1 var(--font)", svg)
    words = f'<title id="{name}-words">{escape(title)}</title><desc id="{name}-more">{escape(description)}</desc>'
    return svg.replace(">", ">" + words, 1)


def _head(tag: str, name: str) -> str:
    box = re.search(r'viewBox="([^"]+)"', tag)
    assert box is not None, "matplotlib writes a viewBox"
    return f'<svg viewBox="{box.group(1)}" role="img" aria-labelledby="words" aria-describedby="more">'.replace(
        '="words"', f'="{name}-words"'
    ).replace('="more"', f'="{name}-more"')
