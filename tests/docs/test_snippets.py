"""Every snippet of the documentation runs, page by page and in order: Python in one namespace, commands in between."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunekit.cli.main import app

PAGES = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WITH_SNIPPETS = sorted(str(p.relative_to(PAGES)) for p in PAGES.rglob("*.md") if BLOCK.search(p.read_text("utf-8")))
ALWAYS = ("index.md", "memory.md", "methods/lora.md", "objectives/prompt-learning.md", "plan.md", "errors.md")
ELSEWHERE = ("$ pip install", "$ tunekit demo")
"""Commands that tests of their own run: installation, the demo."""


@pytest.fixture
def here(
    tiny_masked: str, tiny_decoder: str, tiny_seq2seq: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with the models and rows that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    models = {"my-encoder": tiny_masked, "my-decoder": tiny_decoder, "my-seq2seq": tiny_seq2seq}
    for name, folder in models.items():
        shutil.copytree(folder, name)
        known = Path(name, "tokenizer.json")  # it learns the classes' names, and that a full stop is no part of a word
        for old, new in (('"98"', '"positive"'), ('"99"', '"negative"'), ("WhitespaceSplit", "Whitespace")):
            known.write_text(known.read_text().replace(old, new))
    words = ("good great fine", "bad poor awful")
    rows = [{"text": f"the sun was {words[i % 2].split()[i // 2 % 3]} {i}", "label": ("positive", "negative")[i % 2]} for i in range(60)]  # fmt: skip
    orders = [{"prompt": f"what is {i} ?", "completion": f" the number {i} ."} for i in range(40)]
    for name, lines in (("rows.jsonl", rows), ("instructions.jsonl", orders)):
        Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def run_python(source: str, page: str, line: int, names: dict[str, Any]) -> None:
    code = compile("\n" * line + source, page, "exec")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, names)
    assert "print(" not in source or said.getvalue().strip() or "for finding in" in source


def run_commands(lines: list[str]) -> None:
    for line in lines:
        if line.startswith(ELSEWHERE):
            continue
        assert line.startswith("$ tunekit "), f"no test knows how to run {line!r}"
        done = CliRunner().invoke(app, shlex.split(line)[2:], catch_exceptions=False)
        assert done.exit_code == 0, f"{line}\n{done.output}"
        assert done.output.strip()


@pytest.mark.parametrize("page", [p if p in ALWAYS else pytest.param(p, marks=pytest.mark.slow) for p in WITH_SNIPPETS])
def test_the_snippets_of_a_page_run(page: str, here: Path) -> None:
    text = (PAGES / page).read_text("utf-8")
    names: dict[str, Any] = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries below say of models that nobody pretrained
        for found in BLOCK.finditer(text):
            if found[1] == "python":
                run_python(found[2], page, text[: found.start()].count("\n") + 1, names)
            else:
                run_commands(found[2].splitlines())


def test_the_pages_that_always_run_are_there() -> None:
    assert set(ALWAYS) <= set(WITH_SNIPPETS)
