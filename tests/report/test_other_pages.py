"""The advice's page and the comparison of runs: whole, escaped, and with every figure in words too."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from report.test_report import ADVICE, RECORD, Page
from typer.testing import CliRunner

from tunekit.cli.main import app
from tunekit.report import write_advice_report, write_comparison, write_report
from tunekit.report.confusion import confusion_view

FACTS = {
    "model": {"model_type": "bert", "side": "encoder", "num_layers": 6, "num_parameters": 22_000_000, "name": "mini"},
    "task": {"name": "sequence-classification"},
    "data": {"num_examples": 400, "lengths": [5, 6, 9, 30], "class_counts": [300, 100], "label_names": ["no", "yes"]},
    **ADVICE["workload"],
}
EVIL = "<script>alert(1)</script>\"'&{{ 7*7 }}$x^2$"


def second(**changes: Any) -> dict[str, Any]:
    other = copy.deepcopy(RECORD)
    other["plan"] |= {"learning_rate": 0.5, **changes}
    other["final"] = {"step": 100, "eval_loss": 0.4, "eval_accuracy": 0.95, "eval_runtime": 3.0}
    return other


def test_the_advice_page_shows_plans_times_lengths_and_classes(tmp_path: Path) -> None:
    page = Page(
        write_advice_report({**ADVICE, "workload": FACTS}, tmp_path / "deep" / "advice.html").read_text("utf-8")
    )
    for words in (
        "How to fine-tune a bert model for sequence-classification",
        "22,000,000 parameters",
        "LoRA r=4",
        "few rows",
        "needs 30 GiB",
    ):
        assert words in page.text
    charts = [a["aria-labelledby"] for tag, a in page.tags if tag == "svg"]
    assert charts == ["memory-words", "times-words", "lengths-words", "labels-words"]
    assert "no 300; yes 100" in page.text, "a chart says in words what it draws"


def test_advice_without_rows_or_plans_is_a_page_too(tmp_path: Path) -> None:
    page = Page(write_advice_report({**ADVICE, "ranked": [], "workload": {}}, tmp_path / "a.html").read_text("utf-8"))
    assert "Nothing fits." in page.text


def test_a_comparison_marks_the_best_and_says_where_plans_differ(tmp_path: Path) -> None:
    first = {**RECORD, "final": {"step": 100, "eval_loss": 0.5, "eval_accuracy": 0.9}}
    page, data = write_comparison([first, second()], ["runs/a", "runs/b"], tmp_path)
    text = Page(page.read_text("utf-8")).text
    assert "0.95 best" in text
    assert "0.9 best" not in text
    assert "learning_rate" in text
    assert "output_dir" not in text
    assert "runtime" not in text
    assert list(json.loads(data.read_text())["runs"]) == ["runs/a", "runs/b"]


def test_settings_are_compared_as_a_plan_file_writes_them(tmp_path: Path) -> None:
    page, _ = write_comparison([second(max_steps=None), second(max_steps=9)], ["runs/a", "runs/b"], tmp_path)
    text = Page(page.read_text("utf-8")).text
    assert "null" in text
    assert "None" not in text


def kept(record: dict[str, Any], done: int, step: int) -> dict[str, Any]:
    duration = {"num_steps": done, "step_seconds": 0.5, "total_seconds": 0.5 * done, "wall_seconds": 0.6 * done}
    record = copy.deepcopy(record)
    record["steps"] = {"planned": 300, "resumed_at": 0, "done": done, "kept": step}
    record["measured"] |= {"duration": duration}
    return record


def test_runs_of_different_lengths_have_no_best_time(tmp_path: Path) -> None:
    def told(first: int, other: int) -> str:
        runs = [kept(RECORD, first, 50), kept(second(), other, other)]
        page, _ = write_comparison(runs, ["runs/a", "runs/b"], tmp_path)
        return Page(page.read_text("utf-8")).text

    same, different = told(300, 300), told(100, 300)
    assert "1.0 min best" not in different
    assert "500 ms" in different, "a step's time compares"
    assert "100 of 300 steps; scores of the weights kept, those of step 50, the best by accuracy" in different
    assert "300 steps; scores of the weights kept, those of the last step" in same


def test_what_looks_the_same_is_equally_good(tmp_path: Path) -> None:
    def told(first: int, other: int) -> str:
        runs = [copy.deepcopy(RECORD), second()]
        for run, size in zip(runs, (first, other), strict=True):
            run["measured"]["memory"]["device_bytes"] = size
        return Page(write_comparison(runs, ["runs/a", "runs/b"], tmp_path)[0].read_text("utf-8")).text

    assert "2.00 GiB best" not in told(2**31, 2**31 + 4096)
    assert "2.00 GiB best" in told(2**31, 2**32)


def test_the_best_point_is_the_runs_own_where_the_smallest_is_best(tmp_path: Path) -> None:
    record = {**RECORD, "evaluations": [{"step": 50, "eval_mse": 0.5}, {"step": 100, "eval_mse": 0.9}]}
    record["best"] = {"metric": "eval_mse", "value": 0.5, "step": 50}
    assert "best mse 0.500 at step 50" in write_report(record, None, tmp_path)[0].read_text("utf-8")


def test_a_report_says_whose_weights_were_kept(tmp_path: Path) -> None:
    said = Page(write_report(kept(second(), 100, 50), None, tmp_path)[0].read_text("utf-8")).text
    assert (
        "The weights it kept are those of step 50, the best by accuracy; the scores after training are theirs." in said
    )
    whole = Page(write_report(kept(second(), 300, 300), None, tmp_path)[0].read_text("utf-8")).text
    assert "The weights it kept" not in whole, "the plain end of a run needs no words"


def test_a_run_that_stopped_early_is_not_held_against_the_time_of_all_its_steps(tmp_path: Path) -> None:
    whole = {**RECORD, "steps": {"planned": 100, "resumed_at": 0, "done": 100}}
    early = {**RECORD, "steps": {"planned": 300, "resumed_at": 0, "done": 100}}
    said = [Page(write_report(r, None, tmp_path)[0].read_text("utf-8")).text for r in (whole, early)]
    assert ["all steps" in text for text in said] == [True, False]
    assert ["of 300 steps" in text for text in said] == [False, True]


def test_a_run_without_a_plan_differs_in_no_setting_and_leaves_no_empty_cell(tmp_path: Path) -> None:
    own = {**RECORD, "plan": None, "evaluations": [], "final": None}
    first = {**RECORD, "final": {"step": 100, "eval_loss": 0.5, "eval_accuracy": 0.9}}
    page, _ = write_comparison([first, own, second()], ["runs/a", "runs/own", "runs/b"], tmp_path)
    text = page.read_text("utf-8")
    assert "without a plan" in text
    assert "<code>learning_rate</code>" in text
    for same in ("kind", "schema", "seed", "optim"):
        assert f"<code>{same}</code>" not in text, f"{same} is the same in both plans"
    assert '"></td>' not in text, "what is not known is said by a dash"
    assert text.index(">accuracy</th>") < text.index(">loss</th>"), "the run without scores does not choose the lead"


def test_what_comes_from_data_is_escaped_on_every_page(tmp_path: Path) -> None:
    advice = {**copy.deepcopy(ADVICE), "workload": copy.deepcopy(FACTS)}
    advice["workload"]["model"]["model_type"] = advice["workload"]["data"]["label_names"][0] = EVIL
    other = second(model=EVIL)
    other["trained_tokens"] = [[{"text": EVIL, "trained": True}]]
    other["confusion"] = {"names": [EVIL, "b"], "counts": [[0, 1, 3], [1, 1, 2]]}
    other["samples"] = [{"text": EVIL, "expected": EVIL, "predicted": EVIL, "probability": 0.5}]
    for page in (
        write_advice_report(advice, tmp_path / "advice.html"),
        write_comparison([RECORD, other], [EVIL, "b"], tmp_path)[0],
        write_report(other, None, tmp_path)[0],
    ):
        text = page.read_text("utf-8")
        Page(text)
        assert "<script" not in text


def test_confusions_are_drawn_where_classes_are_few_and_listed_where_they_are_many() -> None:
    few = confusion_view({"names": ["a", "b"], "counts": [[0, 0, 5], [0, 1, 1], [1, 1, 4]]})
    assert few is not None
    assert few["chart"].startswith("<svg")
    many = confusion_view(
        {"names": [str(i) for i in range(77)], "counts": [[i, (i + 1) % 77, i + 1] for i in range(77)]}
    )
    assert many is not None
    assert many["chart"] is None
    assert [w["count"] for w in many["worst"]] == sorted((w["count"] for w in many["worst"]), reverse=True)
    assert many["worst"][0] == {"expected": "76", "predicted": "0", "count": 77}
    assert confusion_view(None) is None


def test_the_command_compares_several_runs_and_leaves_rows_out_when_asked(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        record = {**second(), "samples": [{"text": "a secret row", "predicted": "x"}]}
        (tmp_path / name / "record.json").write_text(json.dumps(record))
    done = CliRunner().invoke(
        app, ["report", str(tmp_path / "a"), str(tmp_path / "b"), "--no-samples"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a" / "comparison.html").is_file()
    one = CliRunner().invoke(app, ["report", str(tmp_path / "a"), "--no-samples"], catch_exceptions=False)
    assert one.exit_code == 0, one.output
    for path in (tmp_path / "a").iterdir():
        assert path.name == "record.json" or "secret" not in path.read_text("utf-8")


@pytest.mark.parametrize("kind", ["expected", "written"])
def test_samples_have_the_columns_of_their_task(tmp_path: Path, kind: str) -> None:
    record = copy.deepcopy(RECORD)
    if kind == "written":
        record["plan"]["task"] = "causal-lm"
        record["samples"] = [{"text": "once", "expected": "upon", "predicted": "a time"}]
    else:
        record["samples"] = [{"text": "row", "expected": "yes", "predicted": "no", "probability": 0.5}]
    text = Page(write_report(record, None, tmp_path)[0].read_text("utf-8")).text
    assert kind in text
    assert ("probability" in text) is (kind == "expected")
