"""A checkpoint is whole or stepped over; a run that is killed while it saves ends where an uninterrupted one does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_runs import lora, trainer
from safetensors.torch import load_file
from transformers import Trainer

import tunekit
from tunekit.checkpoint import MANIFEST, faults, seal
from tunekit.errors import RunError
from tunekit.mixin import TunekitTrainer
from tunekit.saving import ASIDE


def run(folder: Path, cls: type[Trainer] = Trainer, steps: int = 6, resume: Any = None, **settings: Any) -> Trainer:
    """Six steps of LoRA with dropout, a checkpoint every second one."""
    torch.manual_seed(0)
    made = trainer(
        folder, model=lora("bert", "sequence-classification", lora_dropout=0.3), cls=cls, max_steps=steps, save_steps=2,
        save_strategy="steps", disable_tqdm=True, per_device_train_batch_size=4, **settings,
    )  # fmt: skip
    made.train(resume_from_checkpoint=resume)
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a plain Trainer leaves behind."""
    folder = tmp_path_factory.mktemp("plain")
    run(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_the_newest_of_a_plain_trainer_is_whole(plain: Path) -> None:
    assert tunekit.last_checkpoint(plain) == str(plain / "checkpoint-6")
    assert tunekit.last_checkpoint(plain / "nowhere") is None


FILES = (
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "adapter_config.json",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_cut_anywhere_makes_it_torn(name: str, share: float, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoint-6" / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert name in faults(path.parent)[0]
    assert tunekit.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_a_file_of_the_manifest_that_is_missing_makes_it_torn(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain / "checkpoint-6", tmp_path / "checkpoint-6")
    seal(tmp_path / "checkpoint-6")
    assert faults(tmp_path / "checkpoint-6") == []
    (tmp_path / "checkpoint-6" / "optimizer.pt").unlink()
    assert faults(tmp_path / "checkpoint-6") == ["optimizer.pt is missing"]
    (tmp_path / "checkpoint-6" / MANIFEST).write_text("[]")
    assert faults(tmp_path / "checkpoint-6") == [f"{MANIFEST} cannot be read"]


@pytest.mark.parametrize("text", ["", "[1]", '{"files": {"../../x": "a"}}', "[" * 100_000])
def test_a_hostile_manifest_is_a_fault_and_no_traceback(text: str, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain / "checkpoint-6", tmp_path / "checkpoint-6")
    (tmp_path / "checkpoint-6" / MANIFEST).write_text(text)
    assert f"{MANIFEST} cannot be read" in faults(tmp_path / "checkpoint-6")


def test_the_mixin_writes_what_the_host_writes_and_seals_it(plain: Path, tmp_path: Path) -> None:
    run(tmp_path, TunekitTrainer)
    theirs = {p.name for p in (plain / "checkpoint-6").iterdir()}
    assert {p.name for p in (tmp_path / "checkpoint-6").iterdir()} == {*theirs, MANIFEST}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    one, other = weights(plain / "checkpoint-6"), weights(tmp_path / "checkpoint-6")
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_the_best_checkpoint_lies_where_it_is_said_to_and_the_oldest_go(tmp_path: Path) -> None:
    made = run(
        tmp_path, TunekitTrainer, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, save_total_limit=1
    )
    assert made.state.best_model_checkpoint is not None
    assert Path(made.state.best_model_checkpoint).parent == tmp_path
    assert faults(made.state.best_model_checkpoint) == []
    assert ASIDE not in (Path(made.state.best_model_checkpoint) / "trainer_state.json").read_text("utf-8")
    assert len([*tmp_path.glob("checkpoint-*")]) <= 2


def test_resuming_steps_over_a_torn_checkpoint_and_ends_bit_identical(tmp_path: Path) -> None:
    run(tmp_path / "whole", TunekitTrainer)
    run(tmp_path / "torn", TunekitTrainer, steps=6)
    shutil.rmtree(tmp_path / "torn" / "checkpoint-6")
    path = tmp_path / "torn" / "checkpoint-4" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-100])
    run(tmp_path / "torn", TunekitTrainer, resume=True)
    one, other = (weights(tmp_path / n / "checkpoint-6") for n in ("whole", "torn"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_folder_that_cannot_be_written_is_told_and_nothing_half_written_stays(tmp_path: Path) -> None:
    class Full(TunekitTrainer):
        def _save_rng_state(self, output_dir: str) -> None:
            if self.state.global_step == 4:
                raise OSError(28, "No space left on device")
            super()._save_rng_state(output_dir)

    with pytest.raises(RunError) as caught:
        run(tmp_path, Full)
    assert caught.value.codes == ("checkpoint-write",)
    assert "'checkpoint-2'" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_checkpoint as t
left = int(sys.argv[2])
def dies(real):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
import torch, safetensors.torch
os.fsync, os.rename, torch.save = dies(os.fsync), dies(os.rename), dies(torch.save)
t.run(Path(sys.argv[1]), t.TunekitTrainer)
"""


@pytest.mark.parametrize(
    "moment", [3, 17, *(pytest.param(m, marks=pytest.mark.slow) for m in (1, 8, 12, 13, 20, 23, 26))]
)
def test_killed_at_any_moment_of_saving_a_run_ends_bit_identical(moment: int, tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLED.format(tests=here), str(tmp_path / "killed"), str(moment)]
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert all(faults(p) == [] for p in (tmp_path / "killed").glob("checkpoint-*"))
    run(tmp_path / "whole", TunekitTrainer)
    run(tmp_path / "killed", TunekitTrainer, resume=True if tunekit.last_checkpoint(tmp_path / "killed") else None)
    one, other = (weights(tmp_path / n / "checkpoint-6") for n in ("whole", "killed"))
    assert all(torch.equal(one[k], other[k]) for k in one)
