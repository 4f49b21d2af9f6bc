"""The notebook of the tour runs from its first cell to its last, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat (`pip install nbformat nbclient ipykernel`)")
TOUR = Path(__file__).resolve().parent.parent / "examples" / "tour.ipynb"


def cells(notebook: Any) -> list[Any]:
    return [c for c in notebook.cells if c.cell_type == "code"]


def shown(cell: Any, kind: str = "text/html") -> str:
    data = "".join(o.get("data", {}).get(kind, "") for o in cell.outputs)
    return data + "".join(o.get("text", "") for o in cell.outputs if kind == "text/plain")


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    assert all(not c.outputs and c.execution_count is None for c in cells(notebook))


@pytest.mark.slow
def test_it_runs_and_shows_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    monkeypatch.setenv("PYTHONPATH", f"{TOUR.parent}:{TOUR.parent.parent}")
    notebook = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    said = {name: "".join(shown(c, kind) for c in cells(notebook)) for name, kind in (("html", "text/html"), ("text", "text/plain"))}  # fmt: skip
    for words in ("Peak memory", "Duration", "How to fine-tune", "labels-range"):
        assert words in said["html"], words
    for words in ("plan-quantized-base", "accuracy on films", "positive"):
        assert words in said["text"], words
