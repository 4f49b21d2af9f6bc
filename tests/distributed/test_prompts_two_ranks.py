"""Prompt learning on two CPU ranks, from a plan file through `accelerate launch`, trains as one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distributed.test_two_ranks import learnt, losses, train, write_plan

from tunekit.objectives.prompt_learning import PromptLearning
from tunekit.plan import Plan


@pytest.mark.slow
def test_two_ranks_give_the_loss_curve_of_one_process(tmp_path: Path, tiny_masked: str) -> None:
    objective = PromptLearning(
        templates=("{text} was {mask}", "a {mask} : {text}"), verbalizer={"0": ("bad", "poor"), "1": ("good fine",)}
    )
    plans = []
    for ranks, batch, accumulation in ((1, 8, 1), (2, 2, 2)):
        path = write_plan(tmp_path, tiny_masked, ranks=ranks, batch=batch, accumulation=accumulation)
        Plan.load(path).replace(objective=objective).save(path, overwrite=True)
        done = train(path, ranks)
        assert done.returncode == 0, done.stderr[-3000:]
        plans.append(path)
    assert len(losses(plans[0])) == 4
    assert losses(plans[1]) == pytest.approx(losses(plans[0]), rel=1e-4)
    for name, tensor in learnt(plans[0]).items():
        assert torch.allclose(tensor, learnt(plans[1])[name], atol=1e-4), name
