"""What the README shows is what happens. `python tests/test_readme.py` writes the output of today into it."""

from __future__ import annotations

import ast
import doctest
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(README.read_text("utf-8")) if kind == language]


def output(snippet: str, folder: Path) -> str:
    """What the snippet prints in a fresh interpreter that sees a hundred columns and no network."""
    env = {**os.environ, "COLUMNS": "100", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-c", snippet]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.rstrip().splitlines())


def test_the_snippet_has_twelve_lines_and_prints_what_is_shown(tmp_path: Path) -> None:
    snippet = blocks("python")[0]
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 12
    printed = output(snippet, tmp_path)
    assert (tmp_path / "plan.yaml").is_file()
    if f"transformers=={version('transformers')} " not in (README.parent / "constraints.txt").read_text("utf-8"):
        pytest.skip("the figures shown are those of the transformers that constraints.txt pins")
    assert printed == blocks("text")[0], "`python tests/test_readme.py` writes it anew"


def test_the_second_snippet_is_sound_up_to_the_files_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from tunekit.errors import MissingError

    with pytest.raises(MissingError):
        exec(compile(ast.parse(blocks("python")[1]), "README.md", "exec"), {})


def test_the_sessions_shown_hold() -> None:
    sessions = [text for text in blocks("python") if text.startswith(">>>")]
    assert sessions
    for text in sessions:
        test = doctest.DocTestParser().get_doctest(text, {}, "README.md", str(README), 0)
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


def test_the_readme_promises_in_three_lines() -> None:
    lines = README.read_text("utf-8").splitlines()
    assert lines[0] == "# tunekit"
    assert [bool(line) for line in lines[1:6]] == [False, True, True, True, False]


if __name__ == "__main__":
    import tempfile

    text = README.read_text("utf-8")
    printed = output(blocks("python")[0], Path(tempfile.mkdtemp()))
    README.write_text(
        re.sub(r"(?s)(?<=^```text\n).*?(?=^```$)", lambda _: printed, text, count=1, flags=re.MULTILINE), "utf-8"
    )
