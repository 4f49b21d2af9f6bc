"""Runs that are killed at random moments and resumed, held against one that was left alone; one JSON line a kill.

python tests/killed_runs.py lora full --kills 20 --seed 0          SIGKILL at random moments of training and of saving
python tests/killed_runs.py lora --signals 3                       SIGTERM inside a random step, with `Preemption`

Every run is a fork of this process, which itself never trains: importing once makes hundreds of runs affordable.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parent))

import torch
from datasets import Dataset
from plain_runs import rows, trainer
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainerCallback

import tunekit
import zoo
from tunekit.callbacks import GradualUnfreezing, Preemption
from tunekit.checkpoint import faults
from tunekit.mixin import TunekitTrainer
from tunekit.objectives.distillation import Distillation
from tunekit.task import Task

CLS, LM = "sequence-classification", "causal-lm"
STEPS, EVERY, SLOWED_SECONDS = 10, 2, 0.01
NOTES = "notes"
"""A file beside the checkpoints: one line for each that was done saving."""


def model(architecture: str, task: str, method: Any) -> nn.Module:
    """A tiny model with dropout, so that a random state that is not restored shows."""
    made = zoo.build(architecture, Task.named(task))
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    torch.manual_seed(1)
    return tunekit.prepare(made, method, task)


def distilled() -> dict[str, Any]:
    teacher = zoo.build("bert", Task.named(CLS), seed=3)
    return {"objective": Distillation().taught_by(teacher)}


def grouped() -> dict[str, Any]:
    data = Dataset.from_list([{**r, "attention_mask": [1] * len(r["input_ids"])} for r in rows(CLS)])
    return {"train_dataset": data, "settings": {"train_sampling_strategy": "group_by_length"}}


M = tunekit.methods
KINDS: dict[str, tuple[str, str, Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "full": ("bert", CLS, M.Full, dict),
    "lora": ("bert", CLS, lambda: M.Lora(r=2, lora_dropout=0.2), dict),
    "prefix": ("gpt2", LM, lambda: M.PrefixTuning(num_virtual_tokens=3), dict),
    "adapter": ("bert", CLS, lambda: M.BottleneckAdapter(reduction_factor=4), dict),
    "distillation": ("bert", CLS, M.Full, distilled),
    "unfreezing": ("bert", CLS, M.Full, lambda: {"callbacks": [GradualUnfreezing(every=3, unit="steps")]}),
    "grouped": ("bert", CLS, lambda: M.Lora(r=2, lora_dropout=0.2), grouped),
    "workers": ("bert", CLS, lambda: M.Lora(r=2, lora_dropout=0.2), lambda: {"settings": {"dataloader_num_workers": 1}}),
    "plain-trainer": ("bert", CLS, M.Full, lambda: {"cls": Trainer}),
}  # fmt: skip
"""A run's name to its model, method and what else it is given; `plain-trainer` saves as transformers does."""


class Notes(TrainerCallback):
    """Takes down each checkpoint that is done; slows a step so that a kill can hit one."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NOTES

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(SLOWED_SECONDS)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with open(self.path, "a") as file:
            file.write(f"{state.global_step}\n")


def run(kind: str, folder: Path, resume: bool, *more: TrainerCallback) -> None:
    """One run to its end, from the newest whole checkpoint where there is one."""
    architecture, task, method, given = KINDS[kind]
    given = given()
    cls, settings = given.pop("cls", TunekitTrainer), given.pop("settings", {})
    callbacks = [*given.pop("callbacks", ()), Notes(folder), *more]
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    made = trainer(
        folder, architecture, task, model(architecture, task, method()), given={"callbacks": callbacks, **given}, cls=cls,
        max_steps=STEPS, save_steps=EVERY, save_strategy="steps", disable_tqdm=True, per_device_train_batch_size=4,
        logging_strategy="no", **settings,
    )  # fmt: skip
    last = tunekit.last_checkpoint(folder) if resume else None
    made.train(resume_from_checkpoint=last)


def forked(act: Callable[[], Any]) -> int:
    """Runs something in a fork; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        act()
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """A process's exit code; below 0 the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dies_at(operation: int) -> None:
    """Lets this process kill itself at its so manieth operation on the disk."""
    left = operation

    def dies(real: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    import safetensors.torch

    os.fsync, os.rename, os.replace, torch.save = map(dies, (os.fsync, os.rename, os.replace, torch.save))  # type: ignore[assignment]
    safetensors.torch.save_file = dies(safetensors.torch.save_file)


def learnt(folder: Path) -> dict[str, Any]:
    """Everything that the last checkpoint holds: weights, moments, schedule, random state."""
    last = folder / f"checkpoint-{STEPS}"
    assert faults(last) == [], faults(last)
    found: dict[str, Any] = {p.name: load_file(p) for p in sorted(last.glob("*.safetensors"))}
    for name in ("optimizer.pt", "scheduler.pt"):
        found[name] = torch.load(last / name, weights_only=True)
    found["rng"] = torch.load(last / "rng_state.pth", weights_only=False)["cpu"]
    return found


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, all the way down."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def killed(kind: str, folder: Path, seconds: float, operations: int, draw: random.Random, count: int) -> dict[str, Any]:
    """One run that is killed, at a moment of the clock or of saving by turns.

    A run that ended before its moment (the machine was slower when it was timed) is made anew, with an earlier one.
    """
    if count % 2:
        moment: dict[str, Any] = {"operation": draw.randrange(1, operations + 1)}
        child = forked(lambda: (dies_at(moment["operation"]), run(kind, folder, False)))
    else:
        moment = {"seconds": round(draw.uniform(0.0, seconds), 4)}
        child = forked(lambda: run(kind, folder, False))
        time.sleep(moment["seconds"])
        os.kill(child, signal.SIGKILL)
    code = wait(child)
    if code == 0 and "seconds" in moment:
        shutil.rmtree(folder)
        return killed(kind, folder, 0.7 * moment["seconds"], operations, draw, count)
    return {**moment, "code": code}


def left_behind(folder: Path) -> dict[str, Any]:
    """Which checkpoints are there, which of those that were done are gone or torn, and which torn ones lie about."""
    done = [int(x) for x in (folder / NOTES).read_text().split()] if (folder / NOTES).exists() else []
    torn = [p.name for p in sorted(folder.glob("checkpoint-*")) if faults(p)]
    gone = [s for s in done if faults(folder / f"checkpoint-{s}")]
    last = tunekit.last_checkpoint(folder)
    return {"done": done, "lost": gone, "torn": torn, "resumes_from": Path(last).name if last else None}


def count_operations(kind: str, folder: Path) -> int:
    """How many operations on the disk a run makes."""
    low, counts = 0, folder.with_suffix(".count")

    def act() -> None:
        seen = 0

        def counted(real: Callable) -> Callable:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal seen
                seen += 1
                return real(*args, **kwargs)

            return call

        import safetensors.torch

        os.fsync, os.rename, os.replace, torch.save = map(counted, (os.fsync, os.rename, os.replace, torch.save))  # type: ignore[assignment]
        safetensors.torch.save_file = counted(safetensors.torch.save_file)
        run(kind, folder, False)
        counts.write_text(str(seen))

    assert wait(forked(act)) == low
    return int(counts.read_text())


class TermInside(TrainerCallback):
    """Sends SIGTERM to its own process in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def told(kind: str, folder: Path, step: int) -> dict[str, Any]:
    """One run that is told to go inside a step."""
    code = wait(forked(lambda: run(kind, folder, False, TermInside(step), Preemption())))
    return {"step": step, "code": code}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--signals", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="killed-runs-"))
    try:
        for kind in asked.kinds:
            draw = random.Random(f"{kind} {asked.seed}")
            operations = count_operations(kind, top / kind)
            began = time.monotonic()
            assert wait(forked(lambda kind=kind: run(kind, top / f"{kind}-again", False))) == 0
            seconds, whole = time.monotonic() - began, learnt(top / kind)
            assert same(learnt(top / f"{kind}-again"), whole), "two runs that were left alone differ"
            for i in range(asked.kills + asked.signals):
                folder = top / f"{kind}-{i}"
                if i < asked.kills:
                    entry = killed(kind, folder, seconds, operations, draw, i)
                else:
                    entry = told(kind, folder, draw.randrange(1, STEPS))
                entry |= left_behind(folder)
                code = wait(forked(lambda folder=folder, kind=kind: run(kind, folder, True)))
                entry["identical"] = code == 0 and same(learnt(folder), whole)
                print(json.dumps({"kind": kind, **entry}), flush=True)
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(top, ignore_errors=True)


if __name__ == "__main__":
    main()
