"""Runs that are killed at random moments, or told to go, end bit-identical to one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KINDS = ("full", "lora", "prefix", "adapter", "distillation", "unfreezing", "grouped", "workers", "plain-trainer")
HERE = Path(__file__).parent


def runs(*arguments: str) -> list[dict[str, Any]]:
    """What `killed_runs.py` saw, in a process of its own, which has trained nothing and may be forked."""
    path = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, str(HERE / "killed_runs.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def hold(entries: list[dict[str, Any]], *, atomic: bool = True) -> None:
    for entry in entries:
        assert entry["identical"], entry
        assert entry["lost"] == [], entry
        if atomic:
            assert entry["torn"] == [], entry
        if "step" in entry:
            assert entry["code"] == 75, entry
            assert entry["resumes_from"] == f"checkpoint-{entry['step']}", entry
        else:
            # The last operations of a run may come after the moment that was drawn by the clock.
            assert entry["code"] in (-signal.SIGKILL, 0), entry


def test_killed_and_told_to_go_each_ends_bit_identical_and_loses_nothing() -> None:
    entries = runs("grouped", "--kills", "2", "--signals", "1", "--seed", "3")
    assert len(entries) == 3
    assert any(e["code"] == -signal.SIGKILL for e in entries)
    hold(entries)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_kills_and_three_signals(kind: str) -> None:
    entries = runs(kind, "--kills", "20", "--signals", "3")
    assert len(entries) == 23
    hold(entries, atomic=kind != "plain-trainer")
