"""The scripts that measure on a GPU run on the CPU too: every configuration's code path, on tiny models."""

from __future__ import annotations

import argparse
import csv
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def gpu_runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_runs")


def test_there_are_sixty_configurations_or_more_under_names_of_their_own(gpu_runs: ModuleType) -> None:
    runs = gpu_runs.runs()
    assert len(runs) >= 60
    assert len({r.name for r in runs}) == len(runs)
    assert {r.task for r in runs} == {
        "causal-lm", "seq2seq", "sequence-classification", "token-classification", "question-answering", "multiple-choice",
    }  # fmt: skip
    assert len({r.model for r in runs}) >= 14
    assert len({r.method.slug for r in runs}) >= 12
    assert {r.plan.get("quantization") for r in runs} >= {None, "nf4", "int8"}


def test_rows_are_written_as_they_come_and_not_taken_twice(gpu_runs: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    asked = "bert sequence-classification"
    first = gpu_runs.all_rows(path, "cpu", True, 2, 0.0, asked)
    assert first == []
    one = gpu_runs.all_rows(path, "cpu", True, 2, 600.0, f"{asked} bitfit")
    assert [r["status"] for r in one] == ["ok"]
    assert float(one[0]["step_seconds"]) > 0
    assert int(one[0]["predicted_reserved_bytes"]) > 0
    again = gpu_runs.all_rows(path, "cpu", True, 2, 600.0, f"{asked} bitfit")
    assert again == one
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1


@pytest.mark.parametrize("name", ["gpu_memory", "gpu_time"])
def test_the_scripts_print_their_table(
    name: str, gpu_runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module(name)
    options = ["--device", "cpu", "--tiny", "--only", "t5 sequence-classification", "--out", str(tmp_path / "rows.csv")]
    monkeypatch.setattr(sys, "argv", [name, *options])
    script.main()
    assert "1 runs:" in capsys.readouterr().out


def test_the_advised_plan_is_swept_against_its_neighbours(
    gpu_runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module("gpu_throughput")
    asked = argparse.Namespace(out=tmp_path / "rows.csv", device="cpu", tiny=True, minutes=5, only="bert partial")
    rows = script.all_rows(asked)
    assert [r["change"] for r in rows][:2] == ["advised", "rows x 0.5"]
    assert {r["status"] for r in rows} == {"ok"}
    assert all(float(r["tokens_per_second"]) > 0 for r in rows)
    assert script.all_rows(asked) == rows, "a second call takes what is missing, which is nothing"
    script.show(rows)
    assert "as fast as what was advised" in capsys.readouterr().out


@pytest.mark.slow
def test_every_configuration_runs(gpu_runs: ModuleType, tmp_path: Path) -> None:
    rows = gpu_runs.all_rows(tmp_path / "rows.csv", "cpu", True, 2, 3600.0)
    assert {r["run"]: r["status"] for r in rows if r["status"] != "ok"} == {}
    assert {r["run"] for r in rows if r["fidelity"] != "traced"} == set()
    assert len(rows) == len(gpu_runs.runs())
