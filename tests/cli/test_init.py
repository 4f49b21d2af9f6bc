"""`tunekit init`: at most four answers, one file with its reasons, one command that trains it."""

from __future__ import annotations

import itertools
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import tunekit
from tunekit.cli.main import app


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"text": f"the {'good' if i % 2 else 'bad'} sun {i}", "label": "yn"[i % 2]}) for i in range(40)
        )
    )
    return path


def test_four_answers_and_one_command_lead_to_training(tiny_encoder: str, rows: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    answers = [str(rows), tiny_encoder, "cpu", "speed"]
    os.write(ours, "".join(f"{a}\n" for a in answers).encode())
    # Wide, since a terminal of 80 columns would wrap the questions that are counted.
    done = subprocess.run(
        [sys.executable, "-m", "tunekit", "init", "--method", "lora"], stdin=theirs, capture_output=True, text=True, cwd=tmp_path, timeout=240
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("?") == len(answers)
    last = done.stdout.strip().splitlines()[-1]
    assert last == "train it with `tunekit train plan.yaml`"
    plan = tunekit.Plan.load(tmp_path / "plan.yaml")
    assert (plan.model, plan.data.path if plan.data else None) == (tiny_encoder, str(rows))
    trained = CliRunner().invoke(
        app,
        ["train", str(tmp_path / "plan.yaml"), "max_steps=1", f"output_dir={tmp_path / 'out'}"],
        catch_exceptions=False,
    )
    assert trained.exit_code == 0
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def test_every_value_of_the_plan_stands_under_a_comment(tiny_encoder: str, rows: Path, tmp_path: Path) -> None:
    path = tunekit.init(tiny_encoder, str(rows), tmp_path / "plan.yaml", hardware="24GB", method="lora")
    text = path.read_text()
    advice = tunekit.advise(tiny_encoder, str(rows), hardware="24GB", methods=["lora"])
    assert advice.best is not None
    assert tunekit.Plan.load(path) == advice.best.plan, "the comments change nothing"
    lines = text.splitlines()
    bare = [
        line.split(":")[0]
        for above, line in itertools.pairwise(lines)
        if line[:1].isalpha() and not above.lstrip().startswith("#")
    ]
    assert bare == ["kind", "schema"]
    assert all(len(line) <= 140 for line in lines if line.startswith("#"))
    assert yaml.safe_load(text)["kind"] == "tunekit-plan"


def test_without_a_terminal_what_cannot_be_guessed_is_asked_for_by_name(rows: Path) -> None:
    done = CliRunner().invoke(app, ["init", str(rows)])
    assert done.exit_code == 2
    assert "init-missing" in done.output
    assert "--model" in done.output


def test_a_plan_that_is_there_is_not_written_over(tiny_encoder: str, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("mine")
    with pytest.raises(tunekit.TunekitError) as caught:
        tunekit.init(tiny_encoder, str(rows), tmp_path / "plan.yaml", hardware="cpu", method="lora")
    assert caught.value.codes == ("plan-file-exists",)
    assert (tmp_path / "plan.yaml").read_text() == "mine"


def test_where_nothing_fits_no_plan_is_written(tiny_encoder: str, rows: Path, tmp_path: Path) -> None:
    small = tunekit.Hardware(device="cuda", name="tiny", memory_bytes=2**20)
    with pytest.raises(tunekit.TunekitError) as caught:
        tunekit.init(tiny_encoder, str(rows), tmp_path / "plan.yaml", hardware=small, method="lora")
    assert caught.value.codes == ("nothing-fits",)
    assert not (tmp_path / "plan.yaml").exists()
