"""An evaluation takes the memory of one batch, however many rows there are."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
from test_assemble import ROWS, folder_of

import tunekit
from tunekit.methods.full import Full


@pytest.mark.parametrize("task", ["causal-lm", "seq2seq", "token-classification"])
def test_no_logits_of_an_earlier_batch_are_alive(task: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    plan = tunekit.Plan(
        model=folder_of(task, request), task=task, method=Full(), output_dir=str(tmp_path / "run"), per_device_eval_batch_size=4,
    )  # fmt: skip
    made = tunekit.trainer(plan, train_dataset=ROWS[task], eval_dataset=ROWS[task], disable_tqdm=True)
    logits: list[Any] = []
    alive: list[int] = []

    def before(*_: Any) -> None:
        alive.append(sum(r() is not None for r in logits))

    made.model.register_forward_pre_hook(before)
    made.model.register_forward_hook(lambda m, a, out: logits.append(weakref.ref(out["logits"])))
    made.evaluate()
    assert len(alive) == len(ROWS[task]) // 4
    assert max(alive) == 0


def test_batches_of_an_evaluation_are_sorted_by_length(tiny_decoder: str, tmp_path: Path) -> None:
    rows = [{"prompt": "what is up ?", "completion": " the moon" * (1 + i % 8)} for i in range(64)]
    plan = tunekit.Plan(model=tiny_decoder, task="causal-lm", method=Full(), output_dir=str(tmp_path / "run"))
    made = tunekit.trainer(plan, train_dataset=rows, eval_dataset=rows, disable_tqdm=True)
    widths, tokens = [], 0
    for batch in made.get_eval_dataloader():
        widths.append(batch["input_ids"].shape[1])
        tokens += batch["input_ids"].numel()
    assert widths == sorted(widths, reverse=True)
    assert tokens <= 1.1 * sum(len(ids) for ids in made.eval_dataset["input_ids"])
