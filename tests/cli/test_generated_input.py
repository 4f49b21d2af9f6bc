"""Generated bad plans, datasets and command lines: no traceback, no hang, no file where none was asked, bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import generated_input as generated
import pytest


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    before = generated.resident_bytes()
    yield
    assert generated.resident_bytes() - before < 2**30


@pytest.mark.parametrize("which", [0, 1, 2], ids=["plans", "datasets", "lines"])
@pytest.mark.timeout(200)
def test_bad_input_is_answered_in_words(which: int, tiny_encoder: str) -> None:
    ends: Counter[str] = Counter()
    generated.properties(str(Path(tiny_encoder)), 60, ends)[which]()
    assert sum(ends.values()) >= 60
    assert any(name.endswith(" 2") for name in ends)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1, 2], ids=["plans", "datasets", "lines"])
@pytest.mark.timeout(5400)
def test_ten_thousand_of_them(which: int, tiny_encoder: str) -> None:
    ends: Counter[str] = Counter()
    generated.properties(str(Path(tiny_encoder)), 3_334, ends)[which]()
    assert sum(ends.values()) >= 3_334
