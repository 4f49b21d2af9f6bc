"""Rows over two ranks: tokenised once, seen once, the last batch and the metrics those of one process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tunekit
from tunekit.data.fill import filled, num_fillers

SHARINGS = ["ddp", *(["zero2"] if importlib.util.find_spec("deepspeed") else [])]
TRAINED, EVALUATED = 13, 11
"""Neither is a multiple of what two ranks take at once; of the last five rows one rank gets four, and of the last one one none."""


def write_plans(folder: Path, model: str) -> dict[str, str]:
    words = ["good", "bad", "fine", "poor", "great", "awful"]
    rows = [{"text": f"{words[i % 6]} {words[(i * 5 + 1) % 6]} number {i}" + " sun" * (i % 3), "label": i * i % 3 % 2} for i in range(TRAINED + EVALUATED)]  # fmt: skip
    for name, part in (("train", rows[:TRAINED]), ("validation", rows[TRAINED:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    one = tunekit.Plan(
        model=model, task="sequence-classification", method=tunekit.methods.Lora(r=4), learning_rate=1e-2, num_train_epochs=2,
        data=tunekit.DataSpec(path=str(folder)), per_device_train_batch_size=8, per_device_eval_batch_size=8, output_dir=str(folder / "one"),
    )  # fmt: skip
    two = {s: one.replace(num_processes=2, sharding=s, per_device_train_batch_size=4, per_device_eval_batch_size=4, output_dir=str(folder / s)) for s in SHARINGS}  # fmt: skip
    return {name: str(plan.save(folder / f"{name}.yaml")) for name, plan in {"one": one, **two}.items()}


def run(folder: Path, plans: list[str], ranks: int) -> list[list[dict[str, Any]]]:
    """What each rank wrote."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    out = folder / f"out{ranks}.json"
    command = [sys.executable, *launcher, str(Path(__file__).with_name("rows_rank.py")), str(out), *plans]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(out.with_suffix(f".{r}.json").read_text()) for r in range(ranks)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_see_every_row_once_and_end_the_epoch_and_the_metrics_as_one_process(
    tmp_path: Path, tiny_encoder: str
) -> None:
    plans = write_plans(tmp_path, tiny_encoder)
    ((one,),) = run(tmp_path, [plans["one"]], 1)
    first, second = run(tmp_path, [plans[s] for s in SHARINGS], 2)
    assert one["tokenised"] == [False, False]
    epoch = [row for step in one["rows"][:2] for row in step]
    assert len(epoch) == len(set(epoch)) == TRAINED
    for i, sharing in enumerate(SHARINGS):
        a, b = first[i], second[i]
        assert (a["tokenised"], b["tokenised"]) == ([False, False], []) or i > 0, (
            "the first alone, before there is a group"
        )
        assert b["tokenised"] == []
        for step, rows in enumerate(one["rows"]):
            assert not set(a["rows"][step]) & set(b["rows"][step])
            assert sorted(a["rows"][step] + b["rows"][step]) == sorted(rows), (sharing, step)
        assert a["losses"] == pytest.approx(one["losses"], rel=1e-4)
        for name, value in one["scores"].items():
            assert a["scores"][name] == pytest.approx(value, rel=1e-4), name


def test_rows_whose_labels_cannot_be_left_out_stay_as_they_are() -> None:
    import datasets

    numbers = datasets.Dataset.from_dict({"input_ids": [[1], [2], [3]], "labels": [0.5, 1.5, 2.5]})
    assert filled(numbers, 2) is numbers
    classes = datasets.Dataset.from_dict({"input_ids": [[1, 2], [2], [3, 4]], "labels": [0, 1, 1]})
    more = filled(classes, 4)
    assert (len(more), num_fillers(more), more[3]) == (4, 1, {"input_ids": [2], "labels": -100})
    assert filled(more, 4) is more
    assert num_fillers(classes) == 0


def test_the_rows_at_the_end_stay_at_the_end_of_every_epoch() -> None:
    from tunekit.sampler import GroupedByLength

    sampler = GroupedByLength([3, 1, 2, 9, 1, 1], 2, seed=0, num_fillers=2)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order[:4]) == [0, 1, 2, 3]
        assert order[4:] == [4, 5]
