"""The documentation is whole: a page for every method, every public name among the pages of the API, no mark left over."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tunekit
from tunekit.discovery import everything, slugs

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs"


@pytest.fixture(scope="module")
def site() -> Any:
    """The module that mkdocs calls."""
    sys.path.insert(0, str(PAGES / "generate"))
    try:
        yield importlib.import_module("site_pages")
    finally:
        sys.path.remove(str(PAGES / "generate"))


def pages() -> dict[str, str]:
    return {str(p.relative_to(PAGES)): p.read_text("utf-8") for p in sorted(PAGES.rglob("*.md"))}


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    assert sorted(re.findall(r"[\w/-]+\.md", nav)) == sorted(pages())


def test_every_mark_is_filled_with_something(site: Any) -> None:
    for name, text in pages().items():
        assert text.count("<!-- generated") == len(site.MARK.findall(text)), name
        for maker, argument in site.MARK.findall(text):
            made = site.MAKERS[maker](argument)
            assert len(made.strip()) > 10, (name, maker, argument)
            assert "<!-- generated" not in made


def test_every_method_has_a_page_with_the_same_parts() -> None:
    for slug in slugs("method"):
        text = pages()[f"methods/{slug}.md"]
        for part in ("facts", "picture", "evidence", "settings", "recipe", "reference"):
            assert f"<!-- generated: {part} {slug} -->" in text, (slug, part)
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["When", "Use", "Settings", "Recipe", "Limits", "Reference"]  # fmt: skip


def test_the_guide_holds_every_rule_once(site: Any) -> None:
    guide = site.filled(pages()["choosing.md"])
    for slug, rule in everything("rule").items():
        assert guide.count(f"{{ #{slug} }}") == 1, slug
        assert rule.source in guide


def test_every_public_name_is_on_a_page_of_the_api() -> None:
    listed = "\n".join(text for name, text in pages().items() if name.startswith("api/"))
    for name, module in tunekit._WHERE.items():
        assert re.search(rf"^::: {re.escape(module)}\.{name}$", listed, re.MULTILINE), name
    for kind, package in (("method", "methods"), ("objective", "objectives"), ("callback", "callbacks")):
        for slug in slugs(kind):
            assert f"::: tunekit.{package}.{slug.replace('-', '_')}." in listed, slug


def test_every_code_and_command_is_listed(site: Any) -> None:
    from tunekit.cli.main import COMMANDS
    from tunekit.code_docs import all_codes

    errors, commands = site.filled(pages()["errors.md"]), site.filled(pages()["commands.md"])
    assert all(f"### `{code}`" in errors for code in all_codes())
    assert all(f"{{ #{name} }}" in commands for name in COMMANDS)


def test_nothing_is_loaded_from_elsewhere() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert settings["theme"]["font"] is False
    assert not [v for key in ("extra_css", "extra_javascript") for v in settings.get(key, []) if v.startswith("http")]
    assert "mermaid" not in "".join(pages().values())


def test_a_picture_names_what_learns(site: Any) -> None:
    drawn = {slug: site.MAKERS["picture"](slug) for slug in slugs("method")}
    assert len(set(drawn.values())) == len(drawn)
    for slug, svg in drawn.items():
        assert "<title>" not in svg
        assert 'role="img"' in svg and "aria-label=" in svg, slug  # noqa: PT018


def test_examples_of_docstrings_are_shown_as_python() -> None:
    griffe = pytest.importorskip("griffe", reason="needs mkdocstrings, of the extra `docs`")
    assert "docs/generate/examples.py" in (ROOT / "mkdocs.yml").read_text("utf-8")
    module = griffe.load(
        "tunekit.task", search_paths=[ROOT], docstring_parser="google",
        extensions=griffe.load_extensions(PAGES / "generate" / "examples.py"),
    )  # fmt: skip
    parts = [section for section in module["Task"].docstring.parsed if section.kind.value == "examples"]
    assert len(parts) == 1
    assert ">>>" in parts[0].value[0][1]
