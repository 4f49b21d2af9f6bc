"""Advice as HTML for notebooks: one table, its reasons in words, no script and no style from outside."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tunekit.advice_text import TIED, duration, headline, memory, method_text, question, rank, settings, trained
from tunekit.notebook import marked

if TYPE_CHECKING:
    from tunekit.advice import Advice, Entry
    from tunekit.finding import Finding

_STYLE = """<style>
.tunekit-advice {font-family: system-ui, sans-serif; max-width: 60em; overflow-x: auto; line-height: 1.4}
.tunekit-advice table {border-collapse: collapse; width: 100%}
.tunekit-advice th, .tunekit-advice td {text-align: left; vertical-align: top; padding: .35em .7em; border-bottom: 1px solid #8886}
.tunekit-advice td, .tunekit-advice th {white-space: nowrap}
.tunekit-advice td:nth-child(2) {white-space: normal; width: 100%}
.tunekit-advice .whole {white-space: nowrap}
.tunekit-advice small {opacity: .75; display: block}
.tunekit-advice .favours, .tunekit-advice .disfavours {display: block; font-size: .9em}
.tunekit-advice .favours::before {content: "+ "}
.tunekit-advice .disfavours::before {content: "\\2212  "}
@media (max-width: 40em) {.tunekit-advice table {font-size: .85em} .tunekit-advice td, .tunekit-advice th {white-space: normal; padding: .25em}}
</style>"""


def html(advice: Advice) -> str:
    """The advice as an HTML fragment; every text in it is escaped.

    Args:
        advice: What to show.
    """
    parts = [
        _STYLE,
        '<div class="tunekit-advice">',
        f"<h3>{escape(headline(advice))}</h3>",
        f"<p>{escape(question(advice))}</p>",
        _table(advice) if advice.ranked else "<p><b>Nothing fits.</b></p>",
        _list(
            "Not these", [f"<b>{escape(method_text(e.plan))}</b>: {_sentence(e.moving[0])}" for e in advice.rejected]
        ),
        _list("Worth knowing", [_sentence(f) for f in advice.findings]),
        f"<small>{escape(advice.version)}</small>",
        "</div>",
    ]
    return "\n".join(p for p in parts if p)


def _table(advice: Advice) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("#", "method", "trains", "memory, GiB", "time"))
    rows = "\n".join(_row(advice, i) for i in range(len(advice.ranked)))
    tied = len({e.tie for e in advice.ranked}) < len(advice.ranked)
    note = f"<small>{TIED}</small>" if tied else ""
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>{note}"


def _row(advice: Advice, index: int) -> str:
    entry = advice.ranked[index]
    said = ", ".join(map(_whole, settings(entry.plan).split(", ")))
    method = f"<b>{escape(method_text(entry.plan))}</b><small>{said}</small>{_reasons(entry)}"
    cells = (rank(advice, index), None, trained(entry), memory(entry), duration(entry))
    return "<tr>" + "".join(f"<td>{method if c is None else _figure(c)}</td>" for c in cells) + "</tr>"


def _whole(text: str) -> str:
    """What no narrow screen breaks, such as `2e-4` at its hyphen."""
    return f'<span class="whole">{escape(text)}</span>'


def _figure(cell: str) -> str:
    """A figure with its interval or share, which may stand below it."""
    first, bracket, rest = cell.partition(" (")
    return _whole(first) + (f" {_whole(f'({rest}')}" if bracket else "")


def _reasons(entry: Entry) -> str:
    return "".join(
        f'<span class="{f.severity}" title="{escape(f.why, quote=True)}">{marked(f.seen)}</span>'
        for f in entry.moving[:3]
    )


def _sentence(finding: Finding) -> str:
    why = f": {marked(finding.why)}" if finding.why else ""
    fix = f". {marked(finding.fix[0].upper() + finding.fix[1:])}" if finding.fix else ""
    return f"{marked(finding.seen)}{why}{fix}"


def _list(title: str, items: list[str]) -> str:
    return f"<h4>{title}</h4><ul>{''.join(f'<li>{i}</li>' for i in items)}</ul>" if items else ""
