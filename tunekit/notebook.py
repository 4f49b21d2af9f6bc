"""How estimates and problems look in a notebook: an HTML fragment each, without script and without style from outside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunekit.estimate import MemoryEstimate, TimeEstimate
    from tunekit.finding import Finding

_STYLE = """<style>
.tunekit {font-family: system-ui, sans-serif; max-width: 60em; line-height: 1.4}
.tunekit {overflow-x: auto}
.tunekit table {border-collapse: collapse; width: auto}
.tunekit th, .tunekit td {text-align: left; vertical-align: top; padding: .3em .8em; border-bottom: 1px solid #8886}
.tunekit .figure {text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums}
.tunekit td.code {white-space: nowrap}
.tunekit p {margin: .4em 0}
@media (max-width: 40em) {.tunekit th, .tunekit td {padding: .3em} .tunekit td.code {white-space: normal}}
</style>"""


def memory_html(memory: MemoryEstimate) -> str:
    """Parts of the peak, the largest first, and what the device will show."""
    rows = [(name, gib(size)) for name, size in sorted(memory.parts.items(), key=lambda item: -item[1]) if size]
    rows += [
        ("tensors together", gib(memory.allocated_bytes)),
        ("reserved by the allocator", gib(memory.reserved_bytes)),
    ]
    low, high = memory.interval
    said = f"Peak memory: {gib(memory.device_bytes)} GiB, in the {memory.moment} (between {gib(low)} and {gib(high)})"
    return _page(said, _table(("part", "GiB"), rows, figures=(1,)), memory.reasons)


def time_html(time: TimeEstimate) -> str:
    """How long the run takes, and what a step is made of."""
    low, high = time.interval
    said = f"Duration: {long_or_short(time.total_seconds)} (between {long_or_short(low)} and {long_or_short(high)})"
    rows = [("steps", f"{time.num_steps:,}"), ("one step", f"{time.step_seconds:.3g} s")]
    rows += [("tokens a second", f"{time.tokens_per_second:,.0f}")]
    rows += [(f"of a step: {name}", f"{seconds:.3g} s") for name, seconds in time.parts.items()]
    return _page(said, _table(("", ""), rows, figures=(1,)), time.reasons)


def findings_html(findings: Iterable[Finding]) -> str:
    """Problems as a table: how bad, the code, what was seen and why, the way out."""
    found = list(findings)
    if not found:
        return _page("Nothing found", "", ())
    rows = [(f.severity, f.code, f"{f.seen}: {f.why}" if f.why else f.seen, f.fix) for f in found]
    title = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    return _page(title, _table(("", "code", "what", "way out"), rows, codes=(1,)), ())


def _page(title: str, body: str, reasons: Iterable[str]) -> str:
    listed = "".join(f"<li>{marked(r)}</li>" for r in dict.fromkeys(reasons))
    notes = f"<ul>{listed}</ul>" if listed else ""
    return f'{_STYLE}<div class="tunekit"><p><b>{escape(title)}</b></p>{body}{notes}</div>'


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], figures: Sequence[int] = (), codes: Sequence[int] = ()
) -> str:
    kinds = {**dict.fromkeys(figures, ' class="figure"'), **dict.fromkeys(codes, ' class="code"')}
    names = [f'<th scope="col"{kinds.get(i, "")}>{escape(n)}</th>' if n else "<td></td>" for i, n in enumerate(head)]
    top = "".join(names) if any(head) else ""
    body = "".join(
        "<tr>" + "".join(f"<td{kinds.get(i, '')}>{marked(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table>{f'<thead><tr>{top}</tr></thead>' if top else ''}<tbody>{body}</tbody></table>"


def marked(text: str) -> str:
    """Escaped text, with what stands between backticks as code.

    Example:
        >>> marked("set `r: 8` & see")
        'set <code>r: 8</code> &amp; see'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def gib(size_bytes: float) -> str:
    """Bytes as a figure in GiB."""
    return f"{size_bytes / 2**30:.2f}"


def long_or_short(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best.

    Example:
        >>> long_or_short(0.0032), long_or_short(42.3), long_or_short(600), long_or_short(10_000)
        ('0.0032 s', '42 s', '10 min', '2.8 h')
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
