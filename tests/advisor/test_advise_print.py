"""Advice in print, as HTML, as JSON and in comparison: what a person reads, on hand-made entries."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from tunekit.advice import Advice, Entry
from tunekit.advice_html import html
from tunekit.advice_text import text
from tunekit.advisor.order import order
from tunekit.advisor.rule import example
from tunekit.errors import InvalidError, MissingError
from tunekit.finding import Finding, error, warning

GOOD = Finding(code="good", severity="favours", seen="reads <well>", why="because", source="a paper", points=2.0)
BAD = Finding(code="bad", severity="disfavours", seen="costs quality", why="measured", source="a paper", points=-3.0)
TOO_BIG = error("fits-memory", "needs 30.0 GiB of 24.0: 6.0 GiB are missing", "the peak is in backward")


def entry(method: str, findings: tuple[Finding, ...] = (), **facts: Any) -> Entry:
    q = example(method, learning_rate=2e-4, max_length=128, mixed_precision="bf16", **facts)
    return Entry(plan=q.plan, memory=q.memory, duration=q.duration, findings=findings)


def advice(*entries: Entry, **changes: Any) -> Advice:
    workload = dataclasses.replace(example("lora", num_examples=12_000).workload, **changes)
    ranked, rejected, shared = order(workload, entries)
    about = (warning("rows-odd", "3 rows are odd", "they say nothing", "drop them"), *shared)
    return Advice(workload=workload, ranked=ranked, rejected=rejected, findings=about, version="tunekit 0, rules 1")


@pytest.fixture
def sample() -> Advice:
    return advice(entry("lora", (GOOD,)), entry("full"), entry("partial", (BAD,)), entry("bitfit", (TOO_BIG,)))


@pytest.mark.parametrize("width", [40, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_page(sample: Advice, width: int) -> None:
    longest = max(len(line) for line in text(sample, width, colour=False).splitlines())
    assert longest <= min(max(width, 80), 120)


def test_the_page_says_what_is_asked_ranked_refused_and_worth_knowing(sample: Advice) -> None:
    page = text(sample, 100, colour=False)
    places = [page.index(part) for part in ("How to fine-tune", "LoRA", "Full", "Not these", "BitFit", "Worth knowing")]
    assert places == sorted(places)
    for part in (
        "12,000 rows",
        "batch 8",
        "learning rate 2e-4",
        "reads <well>",
        "6.0 GiB are missing",
        "3 rows are odd",
        "rules 1",
    ):
        assert part in page


def test_an_entry_shows_what_it_trains_needs_and_takes() -> None:
    page = text(advice(entry("lora", hours=3, needed_gib=7, trainable_parameters=1_100_000)), 100, colour=False)
    (line,) = [line for line in page.splitlines() if line.lstrip().startswith("1 ")]
    assert re.search(r"1\.1 M \(1 %\) +7\.0 \(7\.0-7\.0\) +3\.0 h \(2\.5-3\.3\)", line)


def test_ties_are_marked_and_explained() -> None:
    tied = text(advice(entry("lora"), entry("full")), 100, colour=False)
    assert tied.count("1=") == 2
    assert "no evidence tells these apart" in tied
    apart = text(advice(entry("lora", (GOOD,)), entry("full")), 100, colour=False)
    assert "1=" not in apart
    assert "no evidence" not in apart


def test_it_is_plain_unless_colour_is_asked_for(sample: Advice, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in str(sample)
    assert "\x1b[" in text(sample, 100, colour=True)
    plain = re.sub(r"\x1b\[[\d;]*m", "", text(sample, 100, colour=True))
    assert [line.rstrip() for line in plain.splitlines()] == text(sample, 100, colour=False).splitlines()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in text(sample)


def test_the_same_advice_prints_the_same(sample: Advice) -> None:
    assert str(sample) == str(dataclasses.replace(sample))


def test_nothing_fits_is_an_answer() -> None:
    none = advice(entry("lora", (TOO_BIG,)))
    assert none.best is None
    page = text(none, 80, colour=False)
    assert "Nothing fits." in page
    assert "6.0 GiB are missing" in page
    assert "Nothing fits." in html(none)
    with pytest.raises(MissingError, match="nothing-fits"):
        none.trainer()


def test_two_methods_are_compared_with_points_and_sources(sample: Advice) -> None:
    words = sample.why("lora", "partial")
    assert "above Partial" in words
    assert "by 5.0 points" in words
    assert words.index("reads <well> (+2.0 points): because") < words.index("costs quality (-3.0 points)")
    assert "[bad] a paper" in words
    assert "is not: needs 30.0 GiB" in sample.why("bitfit", "lora")
    assert "both rejected" in sample.why("bitfit", "bitfit")
    with pytest.raises(InvalidError, match="Did you mean `lora`"):
        sample.why("lroa", "full")


def test_html_escapes_every_text(sample: Advice) -> None:
    page = html(dataclasses.replace(sample, version="<script>alert(1)</script>"))
    assert "reads &lt;well&gt;" in page
    assert "<script" not in page
    assert page.count("<tr>") == 1 + len(sample.ranked)
    assert sample._repr_html_().startswith("<style>")


def test_html_is_well_formed(sample: Advice) -> None:
    from xml.etree import ElementTree

    ElementTree.fromstring(f"<body>{html(sample)}</body>")


def test_json_holds_everything_that_is_needed_to_train_the_plans(sample: Advice) -> None:
    from tunekit.plan import Plan

    data = json.loads(sample.to_json())
    assert (data["kind"], data["schema"], data["version"]) == ("tunekit-advice", 1, sample.version)
    assert data["digest"] == sample.workload.digest()
    assert [Plan.from_dict(e["plan"]) for e in data["ranked"]] == [e.plan for e in sample.ranked]
    assert data["rejected"][0]["findings"][0]["code"] == "fits-memory"
    assert data["ranked"][0]["memory"]["device_bytes"] == sample.ranked[0].memory.device_bytes  # type: ignore[union-attr]


def test_the_trainer_is_made_of_the_best_plan_or_of_the_method_asked_for(sample: Advice) -> None:
    made = dataclasses.replace(sample, make_trainer=lambda plan, **keywords: (plan, keywords))
    assert made.trainer(seed=1) == (sample.ranked[0].plan, {"seed": 1})
    assert made.trainer("partial")[0].method.slug == "partial"
    with pytest.raises(MissingError, match="nothing-fits"):
        made.trainer("bitfit")
