"""Every example in a docstring runs. (pytest's own collection would import `advisor` a second time under another name.)"""

from __future__ import annotations

import doctest
import importlib

import pytest

from source_tree import modules

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

WITH_EXAMPLES = [name for name, path in modules().items() if ">>> " in path.read_text("utf-8")]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_a_module_hold(module: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(module), optionflags=FLAGS)
    assert result.attempted > 0, "the examples stand where doctest does not look"
    assert result.failed == 0
