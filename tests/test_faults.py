"""What goes wrong outside: a full or read-only disk, a killed loader process. One clear error each, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_runs import rows, trainer
from safetensors.torch import load_file
from typer.testing import CliRunner

import tunekit
import zoo
from tunekit.checkpoint import faults
from tunekit.cli.main import app
from tunekit.errors import RunError
from tunekit.mixin import TunekitTrainer
from tunekit.saving import ASIDE
from tunekit.task import Task

CLS = "sequence-classification"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes a file system of so many bytes."""
    made: list[Path] = []

    def mounted(size_bytes: int, options: str = "") -> Path:
        folder = tmp_path / f"disk-{len(made)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}{options}", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs a user who may mount a small file system")
        made.append(folder)
        return folder

    yield mounted
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def run(folder: Path, resume: Any = None, dataset: Any = None, **settings: Any) -> TunekitTrainer:
    torch.manual_seed(0)
    given = {"train_dataset": dataset} if dataset is not None else None
    made = trainer(
        folder, cls=TunekitTrainer, model=zoo.build("bert", Task.named(CLS)), given=given, max_steps=6, save_steps=2,
        save_strategy="steps", disable_tqdm=True, per_device_train_batch_size=4, **settings,
    )  # fmt: skip
    made.train(resume_from_checkpoint=resume)
    return made


def checkpoint_bytes(folder: Path) -> int:
    run(folder)
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in (folder / "checkpoint-2").iterdir())


def test_a_full_disk_is_told_the_whole_checkpoint_stays_and_the_run_goes_on_from_it(
    disk: Callable[..., Path], tmp_path: Path
) -> None:
    size = checkpoint_bytes(tmp_path / "whole")
    small = disk(int(1.5 * size))
    with pytest.raises(RunError) as caught:
        run(small / "out")
    assert caught.value.codes == ("checkpoint-write",)
    assert "'checkpoint-2'" in str(caught.value)
    assert [p.name for p in (small / "out").iterdir()] == ["checkpoint-2"]
    assert faults(small / "out" / "checkpoint-2") == []
    subprocess.run(["mount", "-o", f"remount,size={20 * size}", str(small)], check=True)
    run(small / "out", resume=True)
    ends = [load_file(f / "checkpoint-6" / "model.safetensors") for f in (tmp_path / "whole", small / "out")]
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def plan_file(folder: Path, model: str, output: Path, **more: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": f"the sun {i}", "label": i % 2}) + "\n" for i in range(12)))  # fmt: skip
    data = tunekit.DataSpec(path=str(folder / "rows.jsonl"))
    return tunekit.Plan(
        model=model, task=CLS, method=tunekit.methods.Full(), data=data, output_dir=str(output), max_steps=2, **more
    ).save(folder / "plan.yaml")


def refused(path: Path, *more: str) -> str:
    result = CliRunner().invoke(app, ["train", str(path), *more], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("error: [") == 1, result.stderr
    return result.stderr


def test_a_full_disk_is_one_message_on_the_command_line(disk: Callable[..., Path], tiny_encoder: str, tmp_path: Path) -> None:  # fmt: skip
    message = refused(plan_file(tmp_path, tiny_encoder, disk(16_384) / "out"))
    assert "[checkpoint-write]" in message or "[file-system]" in message or "[disk-small]" in message, message


def test_a_read_only_folder_is_one_message_on_the_command_line(disk: Callable[..., Path], tiny_encoder: str, tmp_path: Path) -> None:  # fmt: skip
    folder = disk(1_000_000, ",ro")
    assert "[file-system]" in refused(plan_file(tmp_path, tiny_encoder, folder / "out"))
    assert list(folder.iterdir()) == []


def test_rows_that_are_gone_when_a_run_goes_on_are_told(tiny_encoder: str, tmp_path: Path) -> None:
    plan = plan_file(tmp_path, tiny_encoder, tmp_path / "out")
    (tmp_path / "rows.jsonl").unlink()
    assert "[data-missing]" in refused(plan, "--resume")


class Kills(list):
    """Rows of which one ends the process that reads it, in a worker only."""

    def __getitem__(self, index: Any) -> Any:
        if index == 17 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


# torch raises from its signal handler, wherever the main thread stands: in a callback of garbage collection nobody can catch it.
# The loader then asks for the worker itself, and the run ends all the same.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_loader_worker_is_told_and_the_checkpoint_before_it_stays(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        run(tmp_path, dataset=Kills(rows(CLS)), dataloader_num_workers=1)
    assert caught.value.codes == ("loader-worker",)
    last = tunekit.last_checkpoint(tmp_path)
    assert f"{Path(last).name!r}" in str(caught.value) if last else "no checkpoint yet" in str(caught.value)
    assert not (tmp_path / ASIDE).exists()


def test_corrupted_weights_of_a_checkpoint_are_stepped_over(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "checkpoint-6" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32  # inside the header
    path.write_bytes(bytes(data))
    assert tunekit.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
