"""A covering part of the table, run on two ranks in one launch; all of it is run by `make matrix`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sharing.cells import SHARINGS, Cell, covering_cells, every_cell, materials, refusal
from sharing.run import run, verdict

for package in ("deepspeed", "bitsandbytes"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}", allow_module_level=True)
CELLS = covering_cells()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sharing") / "material"
    materials(made)
    return made


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    """Every chosen cell on two ranks, and its like in one process: two launches."""
    alone = run({c.alone for c in CELLS}, folder, folder / "one.json", 1)
    return {**alone, **run(CELLS, folder, folder / "two.json", 2)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.key)
def test_a_cell_trains_as_one_process_does_and_what_it_saves_is_whole(cell: Cell, results: dict[str, Any]) -> None:
    assert verdict(cell, results[cell.key], results[cell.alone.key]) == ("works", "")


def test_the_chosen_cells_hold_every_form_of_sharing_and_every_quantisation() -> None:
    assert {c.sharing for c in CELLS} >= set(SHARINGS) - {"one", "zero1"}
    assert {c.quantization for c in CELLS} == {None, "nf4", "fp4", "int8"}
    assert {c.objective for c in CELLS} == {"supervised", "distillation"}
    assert {c.checkpoints for c in CELLS} == {True, False}


def test_every_refusal_says_what_works_instead(folder: Path) -> None:
    found = {c.key: finding for c in every_cell() if (finding := refusal(c, folder)) is not None}
    assert all(f.why and f.fix for f in found.values())
    codes = {f.code for f in found.values()}
    assert {"plan-quantized-base", "quantized-sharding"} <= codes
    assert not {c.key for c in CELLS} & set(found)
