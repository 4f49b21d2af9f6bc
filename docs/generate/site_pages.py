"""What mkdocs calls: fills in the parts of pages that come out of the code, so that they cannot go stale.

A line `<!-- generated: NAME ARGUMENT -->` in a page stands for what the function of that name below writes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import texts
from picture import picture

ROOT = Path(__file__).resolve().parent.parent.parent
TREE = ROOT / "build" / "docs-tree"
MARK = re.compile(r"^<!-- generated: ([a-z]+) ?(\S*) -->$", re.MULTILINE)
MAKERS = {
    "benchmarks": lambda _: texts.benchmarks(ROOT),
    "callbacks": lambda _: texts.callbacks(),
    "checks": lambda _: texts.checks(),
    "codes": lambda _: texts.codes(),
    "commands": lambda _: texts.commands(),
    "evidence": texts.evidence,
    "examples": lambda _: texts.examples(ROOT),
    "facts": texts.facts,
    "methods": lambda _: texts.methods(),
    "picture": picture,
    "recipe": texts.recipe,
    "reference": texts.reference,
    "rules": texts.rules,
    "settings": texts.settings,
}


def on_startup(command: str, dirty: bool) -> None:
    """Lays the packages out as they are imported, which is what reads the docstrings."""
    tree = TREE / "tunekit"
    tree.mkdir(parents=True, exist_ok=True)
    wanted = {p.name: p for p in (ROOT / "tunekit").iterdir() if p.name != "__pycache__"}
    wanted |= {name: ROOT / name for name in ("advisor", "callbacks")}
    for link in tree.iterdir():
        if link.name not in wanted or link.resolve() != wanted[link.name]:
            link.unlink()
    for name, target in wanted.items():
        if not (tree / name).exists():
            (tree / name).symlink_to(target)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its generated parts."""
    return filled(markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Gives the search a name, which the theme leaves out."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def filled(markdown: str) -> str:
    """A page's text with what the code says in place of the marks."""
    return MARK.sub(lambda m: MAKERS[m[1]](m[2]), markdown)
