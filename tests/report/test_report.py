"""The report: one file that loads nothing, escapes what comes from data, says what it draws, and survives what is missing."""

from __future__ import annotations

import copy
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tunekit.advice import Entry
from tunekit.errors import MissingPackageError
from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.finding import Finding, error
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.plan import Plan
from tunekit.report import write_report

GIB = 2**30
MEMORY = MemoryEstimate(
    parts={"weights": GIB, "activations": GIB // 2}, allocated_bytes=3 * GIB // 2, reserved_bytes=2 * GIB,
    device_bytes=2 * GIB, interval=(3 * GIB // 2, 3 * GIB), moment="backward", trainable_parameters=10,
    total_parameters=100,
)  # fmt: skip
DURATION = TimeEstimate(step_seconds=0.2, num_steps=100, total_seconds=20, interval=(10, 40), tokens_per_second=50)
FAVOUR = Finding(code="a-rule", severity="favours", seen="few rows", source="Hu et al. 2021", points=1.0)


def plan(method: Any) -> Plan:
    return Plan(model="/models/mini", task="sequence-classification", method=method)


def entry(method: Any, tie: int, *findings: Finding) -> dict[str, Any]:
    return Entry(plan=plan(method), memory=MEMORY, duration=DURATION, findings=findings, tie=tie).to_dict()


ADVICE: dict[str, Any] = {
    "kind": "tunekit-advice",
    "workload": {"goal": "balanced", "hardware": {"name": "24GB", "memory_bytes": 24 * GIB}},
    "ranked": [entry(Lora(r=4), 0, FAVOUR), entry(Full(), 1), entry(Lora(r=16), 1)],
    "rejected": [Entry(plan=plan(Lora(r=64)), memory=None, duration=None, findings=(error("fits-memory", "needs 30 GiB"),)).to_dict()],
    "findings": [Finding(code="note", severity="note", seen="rows are short").to_dict()],
    "version": "tunekit 0.1.0",
}  # fmt: skip
RECORD: dict[str, Any] = {
    "kind": "tunekit-run",
    "status": "finished",
    "plan": plan(Lora(r=4)).to_dict(),
    "logs": [{"step": s, "loss": 1 / s} for s in range(1, 101)],
    "evaluations": [{"step": 50, "eval_loss": 0.5, "eval_accuracy": 0.91}, {"step": 100, "eval_loss": 0.6, "eval_accuracy": 0.87}],
    "best": {"metric": "eval_accuracy", "value": 0.91, "step": 50},
    "parameters": {"trainable": 1234, "total": 99999},
    "predicted": {"memory": MEMORY.to_dict(), "duration": DURATION.to_dict()},
    "measured": {
        "memory": {"device_bytes": int(2.5 * GIB)},
        "duration": {"num_steps": 100, "step_seconds": 0.25, "total_seconds": 25.0, "wall_seconds": 31.0},
    },
    "scores": [
        {"name": "ours", "metric": "accuracy", "value": 0.9, "note": "test"},
        {"name": "naive Bayes", "metric": "accuracy", "value": 0.7},
    ],
    "samples": [{"text": "where is it", "predicted": "lost", "probability": 0.75}],
    "environment": {"device": "cpu", "host_memory_bytes": 16 * GIB},
    "versions": {"torch": "2.7"},
}  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and words of a page; fails on what is not closed."""

    VOID: ClassVar = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def html(folder: Path, record: dict[str, Any] = RECORD, advice: dict[str, Any] | None = ADVICE) -> str:
    return write_report(record, advice, folder)[0].read_text("utf-8")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the usual record and advice."""
    return html(tmp_path_factory.mktemp("report"))


def test_the_page_loads_nothing_and_runs_nothing(usual: str) -> None:
    text = usual
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [a for _, attrs in page.tags for a in attrs if a in ("src", "srcset") or a.startswith("on")]
    references = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("href", "xlink:href")]
    assert all(v is not None and v.startswith("#") for v in references)
    assert re.findall(r"url\((?!#)[^)]*\)|@import", text) == []
    assert "default-src 'none'" in text


def test_what_comes_from_data_is_escaped_everywhere(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&{{ 7*7 }}$x^2$"
    record, advice = copy.deepcopy(RECORD), copy.deepcopy(ADVICE)
    record["samples"] = [{"text": evil, "predicted": evil, "probability": 0.5}]
    record["scores"][0] |= {"name": evil, "note": evil}
    record["plan"]["model"] = evil
    record["environment"] = {evil: evil}
    record["predicted"]["memory"]["parts"] = {evil: GIB}
    advice["findings"][0]["seen"] = advice["ranked"][0]["findings"][0]["seen"] = evil
    advice["ranked"][0]["memory"]["parts"] = {evil: GIB}
    advice["workload"]["hardware"]["name"] = evil
    text = html(tmp_path, record, advice)
    page = Page(text)
    assert "<script" not in text
    assert "49" not in [w.strip() for w in page.words]
    assert page.text.count("alert(1)") >= 8


def test_every_chart_has_words_and_no_id_occurs_twice(usual: str) -> None:
    page = Page(usual)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    charts = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(charts) == 4
    for attrs in charts:
        assert attrs["role"] == "img"
        assert attrs["aria-labelledby"] in ids
        assert attrs["aria-describedby"] in ids
    assert "ours 0.900; naive Bayes 0.700" in page.text
    assert "best accuracy 0.910 at step 50" in page.text
    assert "peak memory: predicted 2 GiB (1.5 to 3), measured 2.5" in page.text


def test_charts_take_every_colour_from_the_page(usual: str) -> None:
    text = usual
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert [re.findall(r"#[0-9a-fA-F]{6}\b", chart) for chart in charts] == [[]] * 4
    used = set(re.findall(r"var\((--[\w-]+)\)", "".join(charts)))
    css = text[: text.index("</style>")]
    dark = css[css.index("prefers-color-scheme: dark") :]
    for name in used - {"--font"}:
        assert f"{name}:" in css
        assert f"{name}:" in dark


def test_the_page_sets_predicted_beside_measured(usual: str) -> None:
    text = Page(usual).text
    assert "2.00 GiB 1.50 GiB to 3.00 GiB 2.50 GiB 20 % too low, inside the interval" in text
    assert "200 ms 100 ms to 400 ms 250 ms" in text


def test_a_prediction_outside_its_interval_is_called_so(tmp_path: Path) -> None:
    record = copy.deepcopy(RECORD)
    record["measured"]["memory"]["device_bytes"] = 4 * GIB
    assert "50 % too low, outside the interval" in Page(html(tmp_path, record)).text


def test_the_page_shows_the_advice_with_reasons_ties_and_what_was_rejected(usual: str) -> None:
    text = Page(usual).text
    for said in ("few rows (Hu et al. 2021)", "2=", "no evidence tells these apart", "needs 30 GiB", "rows are short"):
        assert said in text


def test_what_stands_in_backticks_is_code_and_still_escaped(tmp_path: Path) -> None:
    advice = copy.deepcopy(ADVICE)
    advice["findings"][0]["seen"] = "`<b>` and `x"
    assert "<li><code>&lt;b&gt;</code> and `x.</li>" in html(tmp_path, RECORD, advice)


def test_the_evaluation_after_training_is_no_point_of_the_curve(tmp_path: Path) -> None:
    record = {**RECORD, "final": {"step": 100, "eval_loss": 0.5, "eval_accuracy": 0.95}}
    page = Page(html(tmp_path, record))
    assert "weights kept 0.5 0.95" in page.text
    assert "accuracy from 0.910 to 0.870" in page.text


FUSION = {
    "adapters": ["sst2", "<b>trec</b>"],
    "rows": 64,
    "layers": [
        {"layer": f"bert.encoder.layer.{i}.feed_forward", "shares": [0.1 * (i + 1), 0.9 - 0.1 * i]} for i in range(3)
    ],
}


def test_a_fusion_is_drawn_layer_by_layer_with_the_same_in_words_and_figures(tmp_path: Path) -> None:
    text = html(tmp_path, {**RECORD, "fusion": FUSION})
    page = Page(text)
    assert "layer 0: sst2 10 %, <b>trec</b> 90 %; layer 1: sst2 20 %" in page.text
    assert "mean: sst2 20 %, <b>trec</b> 80 %" in page.text
    assert "Even shares would be 50 %" in page.text
    assert "layer 2 30 70" in page.text
    assert "<b>trec" not in text
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", re.findall(r"<svg.*?</svg>", text, re.DOTALL)[-2])


def test_the_layers_of_a_fusion_are_told_apart_by_side_and_place_where_they_differ(tmp_path: Path) -> None:
    names = [
        "model.encoder.layers.0.attention",
        "model.encoder.layers.0.feed_forward",
        "model.decoder.layers.0.attention",
    ]
    layers = [{"layer": n, "shares": [0.25, 0.75]} for n in names]
    said = Page(html(tmp_path, {**RECORD, "fusion": {**FUSION, "layers": layers}})).text
    assert "encoder 0 attention: sst2 25 %" in said
    assert "encoder 0 feed-forward: sst2 25 %" in said
    assert "decoder 0 attention: sst2 25 %" in said


@pytest.mark.parametrize("fusion", [None, {}, {"adapters": [], "layers": []}, {"adapters": ["a"], "layers": []}])
def test_without_layers_there_is_no_fusion_to_draw(tmp_path: Path, fusion: Any) -> None:
    assert "Which adapter helped" not in Page(html(tmp_path, {**RECORD, "fusion": fusion})).text


def test_a_run_without_advice_shows_its_own_memory(tmp_path: Path) -> None:
    page = Page(html(tmp_path, RECORD, None))
    assert "The advice" not in page.text
    assert "Memory by part" in page.text


@pytest.mark.parametrize("lacking", ["plan", "logs", "best", "predicted", "measured", "scores", "environment"])
def test_a_record_may_lack_anything(tmp_path: Path, lacking: str) -> None:
    Page(html(tmp_path, {k: v for k, v in RECORD.items() if k != lacking}))


def test_a_record_that_holds_nothing_still_makes_a_page(tmp_path: Path) -> None:
    assert "did not come to its end" in Page(html(tmp_path, {"kind": "tunekit-run"}, None)).text


def test_a_loss_that_was_no_number_is_left_out_of_the_curve(tmp_path: Path) -> None:
    record = copy.deepcopy(RECORD)
    record["logs"][3]["loss"] = None
    Page(html(tmp_path, record))


def test_advice_of_a_later_version_does_not_stop_the_report(tmp_path: Path) -> None:
    advice = copy.deepcopy(ADVICE)
    advice["ranked"][0]["memory"]["a_new_part"] = 1
    assert "1 LoRA r=4" not in Page(html(tmp_path, RECORD, advice)).text


def test_a_plan_of_a_later_version_does_not_stop_the_report(tmp_path: Path) -> None:
    record = copy.deepcopy(RECORD)
    record["plan"]["schema"] = 99
    assert "A training run" in Page(html(tmp_path, record)).text


def test_the_data_beside_the_page_is_what_was_handed_in(tmp_path: Path) -> None:
    _, data = write_report(RECORD, ADVICE, tmp_path)
    read = json.loads(data.read_text("utf-8"))
    assert read["run"] == json.loads(json.dumps(RECORD))
    assert read["advice"] == json.loads(json.dumps(ADVICE))


def test_the_same_run_gives_the_same_page(tmp_path: Path, usual: str) -> None:
    assert html(tmp_path) == usual


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    tmp_path: Path, package: str, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'tunekit-hf\[report\]'"):
        write_report(RECORD, ADVICE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
