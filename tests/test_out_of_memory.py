"""A batch that runs out of memory is split, and the run ends where one with enough memory does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plain_runs import rows, trainer
from torch import nn

import zoo
from tunekit.errors import RunError
from tunekit.mixin import TunekitTrainer
from tunekit.task import Task

CASES = (
    ("bert", "sequence-classification"),
    ("bert", "token-classification"),
    ("gpt2", "causal-lm"),
    ("t5", "seq2seq"),
)


class Small(nn.Module):
    """A device with room for so many rows: the pass fails in the forward or half-way through the backward."""

    def __init__(self, most: int, backward: bool) -> None:
        super().__init__()
        self.most, self.backward, self.failures = most, backward, 0

    def watch(self, model: nn.Module) -> None:
        block = next(m for m in model.modules() if isinstance(m, nn.ModuleList))[-1]
        if self.backward:
            block.register_full_backward_hook(lambda m, given, out: self.check(out[0]))
        else:
            block.register_forward_pre_hook(
                lambda m, args, kwargs: self.check((*args, *kwargs.values())[0]), with_kwargs=True
            )

    def check(self, seen: Any) -> None:
        if seen is not None and len(seen) > self.most:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def run(folder: Path, case: tuple[str, str], small: Small | None, **settings: Any) -> TunekitTrainer:
    model = zoo.build(*case[:1], Task.named(case[1]))
    if small is not None:
        small.watch(model)
    # Plain descent shows the gradients themselves; Adam would blow rounding up to whole steps.
    made = trainer(
        folder, *case, model=model, cls=TunekitTrainer, max_steps=3, save_strategy="no", optim="sgd", learning_rate=0.1,
        logging_steps=1, disable_tqdm=True, **{"per_device_train_batch_size": 8, **settings},
    )  # fmt: skip
    made.train()
    return made


def losses(made: TunekitTrainer) -> list[float]:
    return [e["loss"] for e in made.state.log_history if "loss" in e]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(c))
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_split_run_ends_where_the_whole_one_does(
    case: tuple[str, str], backward: bool, accumulation: int, tmp_path: Path
) -> None:
    small = Small(3, backward)
    settings = {"gradient_accumulation_steps": accumulation}
    whole, split = run(tmp_path / "a", case, None, **settings), run(tmp_path / "b", case, small, **settings)
    assert small.failures > 0
    assert len(split.oom_recovery.events) == small.failures
    assert losses(split) == pytest.approx(losses(whole), rel=1e-5)
    for (name, p), q in zip(whole.model.named_parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-6, msg=name)


def test_a_size_that_failed_is_split_at_once_from_then_on(tmp_path: Path) -> None:
    small = Small(4, False)
    same = [{**r, "input_ids": r["input_ids"][:7]} for r in rows("sequence-classification")]
    made = trainer(
        tmp_path, cls=TunekitTrainer, max_steps=4, save_strategy="no", given={"train_dataset": same}, disable_tqdm=True
    )
    small.watch(made.model)
    made.train()
    assert small.failures == 1


def test_a_row_that_does_not_fit_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        run(tmp_path, CASES[0], Small(0, False))
    assert caught.value.codes == ("out-of-memory-row",)


def test_any_other_error_goes_through(tmp_path: Path) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    model = zoo.build("bert", Task.named("sequence-classification"))
    model.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer(tmp_path, model=model, cls=TunekitTrainer, save_strategy="no").train()


def test_the_hosts_own_search_for_a_batch_size_gets_the_error(tmp_path: Path) -> None:
    made = trainer(tmp_path, cls=TunekitTrainer, save_strategy="no", auto_find_batch_size=True)
    assert not made._splits_exactly(None)
    assert trainer(tmp_path, cls=TunekitTrainer, save_strategy="no")._splits_exactly(None)


def test_where_deepspeed_fixes_the_micro_batch_it_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path, cls=TunekitTrainer, save_strategy="no")
    monkeypatch.setattr(TunekitTrainer, "_sharded", lambda self: True)
    Small(0, False).watch(made.model)
    with pytest.raises(RunError) as caught:
        made.train()
    assert caught.value.codes == ("out-of-memory-sharded",)
