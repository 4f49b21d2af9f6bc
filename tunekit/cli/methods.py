"""`tunekit methods`: what there is to choose from."""

from __future__ import annotations

from tunekit.cli.session import Answer, AsJson, Verbose, command, console_text


@command
def answer(as_json: AsJson = False, verbose: Verbose = False) -> Answer:
    """List the fine-tuning methods; with `--json` also where each was published.

    [dim]Example:[/dim] tunekit methods --json
    """
    from tunekit.discovery import everything

    found = [
        {
            "slug": slug,
            "title": cls.title,
            "family": cls.family,
            "merges": cls.merges,
            "trains_base": cls.trains_base,
            "summary": (cls.__doc__ or "").strip().partition("\n")[0],
            "reference": cls.reference,
        }
        for slug, cls in everything("method").items()
    ]
    return Answer(data=found, text=lambda: _text(found))


def _text(found: list[dict]) -> str:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("slug", "what it does", "merges"):
        table.add_column(name, no_wrap=name != "what it does")
    for row in found:
        table.add_row(row["slug"], row["summary"], "yes" if row["merges"] else "no")
    return console_text(table, "", "more on one: `tunekit explain SLUG`")
