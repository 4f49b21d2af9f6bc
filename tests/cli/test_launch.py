"""`tunekit launch` writes what starts the processes of a plan, and starts them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import tunekit
from tunekit.cli.main import app

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


def call(*args: object) -> Any:
    return CliRunner().invoke(app, ["launch", *map(str, args)], catch_exceptions=False)


@pytest.fixture
def plan(tiny_encoder: str, tmp_path: Path) -> Path:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"good sun {i}", "label": i % 2}) + "\n" for i in range(32)))
    made = tunekit.Plan(
        model=tiny_encoder, task="sequence-classification", method=tunekit.methods.Lora(r=2), max_steps=2, num_processes=2,
        data=tunekit.DataSpec(path=str(rows)), output_dir=str(tmp_path / "run"), sharding="ddp",
    )  # fmt: skip
    return made.save(tmp_path / "plan.yaml")


def test_a_dry_run_writes_the_files_says_the_command_and_starts_nothing(plan: Path) -> None:
    result = call(plan, "learning_rate=1e-3", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    folder = plan.with_suffix(".launch")
    assert told["files"] == [str(folder / "accelerate.yaml")]
    assert yaml.safe_load((folder / "accelerate.yaml").read_text())["num_processes"] == 2
    assert told["command"][1:5] == [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(folder / "accelerate.yaml"),
    ]
    assert told["command"][-5:] == ["-m", "tunekit", "train", str(plan), "learning_rate=1e-3"]
    assert not (plan.parent / "run").exists()


@needs_deepspeed
def test_under_zero_deepspeeds_file_lies_beside_and_is_named(plan: Path) -> None:
    assert call(plan, "sharding=zero3", "offload=parameters", "--dry-run").exit_code == 0
    folder = plan.with_suffix(".launch")
    config = yaml.safe_load((folder / "accelerate.yaml").read_text())
    assert config["deepspeed_config"]["deepspeed_config_file"] == str(folder / "deepspeed.json")
    section = json.loads((folder / "deepspeed.json").read_text())["zero_optimization"]
    assert (section["stage"], section["offload_param"]["device"]) == (3, "cpu")


def test_each_machine_is_told_its_rank_and_where_the_first_is(plan: Path) -> None:
    asked = (
        "num_processes=16",
        "--num-machines",
        2,
        "--machine-rank",
        1,
        "--main-process-ip",
        "10.0.0.1",
        "--dry-run",
        "--json",
    )
    words = json.loads(call(plan, *asked).stdout)["command"]
    options = dict(zip(words[3:-6:2], words[4:-6:2], strict=False))
    assert options["--machine_rank"] == "1"
    assert options["--main_process_ip"] == "10.0.0.1"
    assert options["--main_process_port"] == "29500"
    assert "num_machines=2" in words, "the ranks must read the same number"


def test_slurm_gets_one_task_a_machine_whose_rank_is_the_nodes(plan: Path) -> None:
    result = call(plan, "num_processes=16", "--num-machines", 2, "--slurm")
    assert result.exit_code == 0, result.output
    script = plan.with_suffix(".launch") / "slurm.sh"
    text = script.read_text()
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n" in text
    assert "--machine_rank $SLURM_NODEID --main_process_ip $MAIN" in text
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert f"sbatch {script}" in result.stdout


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (("num_processes=16", "--num-machines", "2"), "launch-address"),
        (("--machine-rank", "1"), "launch-rank"),
        (("data=null",), "plan-data-missing"),
        (("sharding=fsdp", "quantization=int8"), "quantized-sharding"),
    ],
)
def test_what_cannot_start_is_refused_and_nothing_is_written(asked: tuple[str, ...], code: str, plan: Path) -> None:
    result = call(plan, *asked)
    assert result.exit_code == 2
    assert code in result.stderr
    assert not plan.with_suffix(".launch").exists()


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "zero3"])
def test_two_ranks_start_train_and_save(sharding: str, plan: Path) -> None:
    command = [sys.executable, "-m", "tunekit", "launch", str(plan), f"sharding={sharding}"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((plan.parent / "run" / "record.json").read_text())
    assert record["environment"]["num_processes"] == 2
    assert record["steps"]["done"] == 2
    assert (plan.parent / "run" / "adapter_model.safetensors").is_file()
