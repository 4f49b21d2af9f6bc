"""`tunekit student`, `tunekit teach` and `tunekit train`, one after the other, on one plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from distilled import ASKED, writer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import tunekit
from tunekit.cli.main import app
from tunekit.methods.lora import Lora
from tunekit.objectives.distillation import Distillation


def call(*args: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


@pytest.fixture
def plan(tiny_decoder: str, tmp_path: Path) -> Path:
    """A plan whose student does not exist yet."""
    writer("causal-lm", tmp_path / "teacher", tiny_decoder)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ASKED))
    made = tunekit.Plan(
        model=str(tmp_path / "student"), task="causal-lm", method=Lora(r=4), data=tunekit.DataSpec(path=str(tmp_path / "rows.jsonl")),
        output_dir=str(tmp_path / "run"), max_steps=2, objective=Distillation(teacher=str(tmp_path / "teacher"), cache=str(tmp_path / "answers"), top_k=16),
    )  # fmt: skip
    return made.save(tmp_path / "plan.yaml")


def test_a_student_is_made_taught_and_trained_from_the_command_line(plan: Path, tmp_path: Path) -> None:
    made = call("student", tmp_path / "teacher", tmp_path / "student", "--task", "causal-lm", "--layers", 2)
    assert made.exit_code == 0
    assert "model.layers 1, 3" in made.stdout
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config.num_hidden_layers == 2
    again = call("student", tmp_path / "teacher", tmp_path / "student", "--task", "causal-lm", "--layers", 2)
    assert again.exit_code == 2
    size = call("teach", plan, "--size")
    assert "24 rows, top 16 log-probabilities and the rest:" in size.stdout
    assert not (tmp_path / "answers").exists()
    early = call("train", plan)
    assert early.exit_code == 2
    assert "distillation-cache-missing" in early.stderr
    assert "tunekit teach plan.yaml" in " ".join(early.stderr.split())
    taught = call("teach", plan, "--json")
    assert json.loads(taught.stdout)["written"]
    assert (tmp_path / "answers" / "part-00000.arrow").is_file()
    trained = call("train", plan)
    assert trained.exit_code == 0, trained.output
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    stale = call("train", plan, "objective.temperature=4.0", "--overwrite")
    assert stale.exit_code == 2
    assert "distillation-cache-stale" in stale.stderr
