"""RunRecord, MemoryWatch, Progress: what they say of a run."""

from __future__ import annotations

import io
import json
import math
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from tunekit.callbacks import MemoryWatch, Progress, RunRecord
from tunekit.callbacks._facts import without_home
from tunekit.callbacks._peak import PeakMemory
from tunekit.callbacks._steps import StepClock
from tunekit.estimate import MemoryEstimate, TimeEstimate
from tunekit.files import write_text
from tunekit.plan import Plan
from tunekit.preflight import digest

MEMORY = MemoryEstimate(
    parts={"weights": 100},
    allocated_bytes=100,
    reserved_bytes=120,
    device_bytes=200,
    interval=(150, 250),
    moment="loss",
)
DURATION = TimeEstimate(step_seconds=0.5, num_steps=4, total_seconds=2.0, interval=(1.0, 3.0), tokens_per_second=10.0)


class Line(nn.Module):
    """y = w x, with a frozen companion."""

    def __init__(self, nan_at: int | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.zeros(7), requires_grad=False)
        self.calls, self.nan_at = 0, nan_at

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        loss = ((x * self.w - labels) ** 2).mean()
        return {"loss": loss * math.nan if self.calls == self.nan_at else loss, "logits": x * self.w}


def make(folder: Path, *callbacks: Any, model: nn.Module | None = None, **more: Any) -> Trainer:
    rows = [{"x": [float(i)], "labels": [2.0 * i]} for i in range(8)]
    args = TrainingArguments(
        str(folder), max_steps=4, per_device_train_batch_size=2, logging_steps=1, report_to="none", use_cpu=True,
        disable_tqdm=True, learning_rate=0.1, **{"save_strategy": "no", **more},
    )  # fmt: skip
    return Trainer(model or Line(), args, train_dataset=rows, eval_dataset=rows[:3], callbacks=list(callbacks))


def test_the_record_holds_losses_metrics_and_both_sides_of_every_prediction(tmp_path: Path) -> None:
    trainer = make(tmp_path / "out", RunRecord(tmp_path / "there", memory=MEMORY, duration=DURATION))
    trainer.train()
    metrics = trainer.evaluate()
    record = json.loads((tmp_path / "there" / "record.json").read_text())
    assert [row["step"] for row in record["logs"]] == [1, 2, 3, 4]
    assert record["logs"][0]["loss"] == trainer.state.log_history[0]["loss"]
    assert record["final"]["eval_loss"] == metrics["eval_loss"]
    assert record["evaluations"] == []
    assert record["parameters"] == {"trainable": 1, "total": 8}
    assert record["data"] == {"train_rows": 8, "fingerprint": record["data"]["fingerprint"], "eval_rows": 3}
    assert record["steps"] == {"planned": 4, "resumed_at": 0, "done": 4, "kept": 4}
    assert record["predicted"]["memory"]["device_bytes"] == 200
    assert record["measured"]["memory"]["device_bytes"] > 2**20
    assert record["predicted"]["duration"]["step_seconds"] == 0.5
    took = record["measured"]["duration"]
    assert took["num_steps"] == 4
    assert 0 < took["step_seconds"] < took["total_seconds"] < took["wall_seconds"]
    assert record["status"] == "finished"


def test_the_record_names_neither_the_host_nor_the_home_folder(tmp_path: Path, monkeypatch: Any) -> None:
    from tunekit.methods.full import Full

    monkeypatch.setenv("HOME", str(tmp_path))
    plan = Plan(model=f"{tmp_path}/models/m", task="causal-lm", method=Full(), output_dir=f"{tmp_path}/out")
    make(tmp_path / "out", RunRecord(plan=plan)).train()
    text = (tmp_path / "out" / "record.json").read_text()
    assert "~/models/m" in text
    assert str(tmp_path) not in text
    assert f'"{socket.gethostname()}"' not in text


def test_the_record_is_written_at_every_save_of_a_run_that_dies(tmp_path: Path) -> None:
    class Dies(Line):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            if self.calls == 3:
                raise RuntimeError("power cut")
            return super().forward(x, labels)

    trainer = make(tmp_path, RunRecord(), model=Dies(), save_strategy="steps", save_steps=2)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.train()
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["status"] == "running"
    assert record["steps"]["done"] == 2


def test_a_loss_that_is_no_number_leaves_strict_json(tmp_path: Path) -> None:
    make(tmp_path, RunRecord(), model=Line(nan_at=3), logging_nan_inf_filter=False).train()
    record = json.loads((tmp_path / "record.json").read_text(), parse_constant=pytest.fail)
    assert [row["loss"] is None for row in record["logs"]] == [False, False, True, True]


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    record, args = RunRecord(tmp_path), TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    state = TrainerState(is_world_process_zero=False)
    record.on_train_begin(args, state, TrainerControl())
    record.on_train_end(args, state, TrainerControl())
    assert not list(tmp_path.iterdir())


def test_the_digest_looks_at_no_dataset_that_may_draw_random_numbers() -> None:
    class Augmented(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("looked at")

    def transform(batch: Any) -> Any:
        raise AssertionError("looked at")

    rows = Dataset.from_list([{"a": 1}, {"a": 2}])
    assert digest(Augmented()) is None
    assert digest(rows.with_transform(transform)) == digest(rows) == digest([{"a": 1}, {"a": 2}])
    assert digest(rows) != digest(rows.select([0]))
    assert digest([]) is None


def test_home_is_only_shortened_where_it_is_a_whole_folder(monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert without_home(["/home/ann/x", "/home/anna/x", "/home/ann", 3]) == ["~/x", "/home/anna/x", "~", 3]


def test_the_first_step_and_what_lies_between_steps_are_kept_out_of_step_seconds() -> None:
    clock = StepClock()
    time.sleep(0.2)
    clock.step()
    for _ in range(2):
        time.sleep(0.2)
        clock.mark()
        clock.step()
    clock.end()
    took = clock.to_dict()
    assert took["step_seconds"] < 0.1
    assert took["first_step_seconds"] >= 0.2
    assert took["wall_seconds"] >= 0.6


def test_peak_memory_sees_what_was_freed_again() -> None:
    peak = PeakMemory(every_seconds=0.005)
    peak.start()
    block = torch.ones(64 * 2**20 // 4 * 4)  # 256 MiB
    time.sleep(0.05)
    del block
    peak.stop()
    measured = peak.bytes()
    assert measured["device_bytes"] - measured["start_bytes"] >= 200 * 2**20


def test_a_forgotten_peak_ends_its_thread() -> None:
    import threading

    before, peak = set(threading.enumerate()), PeakMemory(every_seconds=0.005)
    peak.start()
    # Another test's thread may end at any moment, so this one is told by itself and not by their number.
    (mine,) = (t for t in threading.enumerate() if t.name == "tunekit-peak-memory" and t not in before)
    del peak
    mine.join(5)
    assert not mine.is_alive()


def test_memory_watch_says_when_the_prediction_was_exceeded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = MemoryWatch(predicted=MEMORY)
    with caplog.at_level("WARNING", "tunekit.callbacks.memory_watch"):
        make(tmp_path, watch).train()
    assert watch.exceeded
    assert "predicted" in caplog.text
    assert watch.to_dict()["measured"]["device_bytes"] > watch.to_dict()["predicted"]["device_bytes"]


def test_memory_watch_is_quiet_inside_the_interval(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import dataclasses

    watch = MemoryWatch(predicted=dataclasses.replace(MEMORY, interval=(0, 2**50)))
    with caplog.at_level("WARNING", "tunekit.callbacks.memory_watch"):
        make(tmp_path, watch).train()
    assert not watch.exceeded
    assert not caplog.text


def test_progress_writes_plain_lines_with_the_time_left_into_a_pipe(tmp_path: Path) -> None:
    out = io.StringIO()
    trainer = make(tmp_path, Progress(title="line", stream=out), eval_strategy="steps", eval_steps=4)
    trainer.train()
    said = out.getvalue()
    trainer.evaluate()
    assert out.getvalue() == said, "what is asked for after training is returned, not told twice"
    lines = said.splitlines()
    assert lines[0].startswith("line: step 1/4")
    assert any("step 3/4  loss" in line and "left" in line for line in lines)
    assert any("epoch 1: loss" in line for line in lines)
    assert "\x1b" not in out.getvalue()


def test_progress_draws_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: Any) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    make(tmp_path, Progress(title="line", stream=out)).train()
    assert "4/4" in out.getvalue()
    assert "\x1b[?25h" in out.getvalue(), "the cursor comes back"


def test_progress_is_silent_on_other_ranks(tmp_path: Path) -> None:
    out = io.StringIO()
    progress, state = Progress(stream=out), TrainerState(is_world_process_zero=False, max_steps=1, global_step=1)
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    progress.on_train_begin(args, state, TrainerControl())
    progress.on_log(args, state, TrainerControl(), logs={"loss": 1.0})
    progress.on_step_end(args, state, TrainerControl())
    progress.on_evaluate(args, state, TrainerControl(), metrics={"eval_loss": 1.0})
    progress.on_train_end(args, state, TrainerControl())
    assert out.getvalue() == ""


def test_a_file_that_could_not_be_written_leaves_the_old_one_and_no_scraps(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.json", "\ud800")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_packed_weights_are_counted_by_the_values_they_stand_for() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    from tunekit.callbacks import _facts
    from tunekit.callbacks.throughput import token_flops

    model = nn.Sequential(bnb.nn.Linear4bit(64, 32, bias=False), nn.Linear(32, 2)).to("cpu")
    model[0].weight.requires_grad_(False)
    assert model[0].weight.numel() == 32 * 64 // 2
    assert _facts.parameters(model) == {"trainable": 66, "total": 32 * 64 + 66}
    assert token_flops(model) == 4 * (32 * 64 + 66) + 2 * 66
