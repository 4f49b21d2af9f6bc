"""Few cells of the matrix, run; and the page of all of them, kept true to what the methods refuse."""

from __future__ import annotations

from collections import Counter

import pytest

import zoo
from matrix.cell import run_cell
from matrix.cells import METHODS, PAIRS, REASONS, Cell, covering_cells, every_cell
from matrix.page import PAGE, excluded, page, read
from tunekit.task import TASKS

MAKE = "run `make matrix`"
EXCLUDED_SHARE, WORKING_SHARE = 0.08, 0.97


@pytest.mark.parametrize("cell", covering_cells(), ids=lambda c: c.key.replace(" ", "-"))
def test_a_cell_works_or_is_refused_before_loading(cell: Cell) -> None:
    off, on = run_cell(cell)
    assert off.status in ("works", "refused"), f"{off.code}: {off.seen}"
    assert on.status in ("works", "refused"), f"with checkpointing: {on.code}: {on.seen}"


def test_the_covering_cells_hold_every_method_task_and_architecture() -> None:
    chosen = covering_cells()
    assert {c.method for c in chosen} == {*METHODS}
    assert {c.task for c in chosen} == {t.name for t in TASKS}
    assert {c.architecture for c in chosen} == {*zoo.ARCHITECTURES}


def test_every_cell_was_run() -> None:
    assert {c.key for c in every_cell()} == {*read()["cells"]}, MAKE


def test_what_was_refused_when_it_ran_is_what_is_refused_now() -> None:
    seen = {
        f"{key} {half}": tuple(cell[half][1:2])
        for key, cell in read()["cells"].items()
        for half in ("off", "on")
        if cell[half][0] == "refused"
    }
    assert seen == {key: (code,) for key, (code, _) in excluded().items()}, MAKE


def test_nothing_is_refused_for_a_reason_that_is_not_on_the_list() -> None:
    assert {code for code, _ in excluded().values()} <= {*REASONS}


def test_the_page_shows_these_results() -> None:
    assert PAGE.read_text() == page(read()), MAKE


def test_nearly_everything_works_and_little_is_excluded() -> None:
    counts = Counter(cell[half][0] for cell in read()["cells"].values() for half in ("off", "on"))
    assert sum(counts.values()) == 2 * len(METHODS) * len(PAIRS)
    assert counts["refused"] <= EXCLUDED_SHARE * sum(counts.values())
    assert counts["works"] >= WORKING_SHARE * (sum(counts.values()) - counts["refused"])
