"""What tests of objectives ask for."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def folder_of(tiny_masked: str, tiny_decoder: str, tiny_seq2seq: str) -> Callable[[str], str]:
    """The folder of a tiny model by its side."""
    return {"encoder": tiny_masked, "decoder": tiny_decoder, "seq2seq": tiny_seq2seq}.__getitem__
