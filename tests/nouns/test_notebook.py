"""Estimates and problems as a notebook shows them: whole, escaped, without anything from outside."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.finding import Finding, Findings, error, warning

EVIL = "<script>alert(1)</script>"
MEMORY = MemoryEstimate(
    parts={"weights": 3 * 2**30, EVIL: 2**30, "logits": 0}, allocated_bytes=4 * 2**30, reserved_bytes=5 * 2**30,
    device_bytes=6 * 2**30, interval=(5 * 2**30, 7 * 2**30), moment="backward", reasons=("assumed", EVIL),
)  # fmt: skip
TIME = TimeEstimate(
    step_seconds=0.5, num_steps=1000, total_seconds=500.0, interval=(400.0, 8000.0), tokens_per_second=2000.0, parts={"forward": 0.2},
)  # fmt: skip
PROBLEMS = Findings((error("labels-range", EVIL, "out of range", "set 8"), warning("odd", "something")))


def text(shown: Any) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<style>.*?</style>", "", shown._repr_html_())).split())


@pytest.mark.parametrize("shown", [MEMORY, TIME, PROBLEMS, PROBLEMS[0], Findings()])
def test_it_is_one_escaped_fragment_without_script(shown: Any) -> None:
    made = shown._repr_html_()
    assert "<script" not in made
    assert "http" not in made
    assert made.count("<div") == made.count("</div>") == 1


def test_memory_shows_its_moment_its_parts_and_its_interval() -> None:
    said = text(MEMORY)
    assert said.startswith("Peak memory: 6.00 GiB, in the backward (between 5.00 and 7.00)")
    assert "weights 3.00" in said
    assert "logits" not in said, "a part that is nothing is left out"
    assert "reserved by the allocator 5.00" in said


def test_time_shows_its_steps_and_its_interval() -> None:
    assert text(TIME).startswith("Duration: 8 min (between 7 min and 2.2 h) steps 1,000 one step 0.5 s")


def test_problems_are_a_table_and_print_one_a_line() -> None:
    assert "2 problems" in text(PROBLEMS)
    assert "set 8" in text(PROBLEMS)
    assert str(PROBLEMS).splitlines() == [str(f) for f in PROBLEMS]
    assert str(Findings()) == "nothing found"
    assert text(Findings()) == "Nothing found"


def test_the_advice_leaves_the_tables_of_others_as_they_are() -> None:
    from tunekit import advice_html, notebook

    assert ".tunekit " not in advice_html._STYLE, "one page holds both, and a style is for all of it"
    assert "tunekit-advice" not in notebook._STYLE


def test_names_between_backticks_are_code() -> None:
    assert "set <code>r: 8</code>" in Findings((error("odd", "`r`", "low", "set `r: 8`"),))._repr_html_()


def test_findings_are_a_tuple() -> None:
    assert Findings() == ()
    assert isinstance(PROBLEMS[0], Finding)
