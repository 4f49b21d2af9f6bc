"""Of two CPU ranks one runs out of memory: both split together, remember it, and end where two with enough memory do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

RANK = Path(__file__).with_name("oom_rank.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("oom") / "found.json"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, str(RANK), str(output)], capture_output=True, text=True, timeout=280, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


def close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)
    for name, values in one["weights"].items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(other["weights"][name]), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_ranks_that_agree_learn_what_ddp_learns(found: dict[str, Any]) -> None:
    assert found["ddp"]["type"].endswith("MULTI_CPU")
    close(found["agreed"], found["ddp"])
    assert found["agreed"]["events"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("split", "whole"), [("split", "ddp"), ("accumulated split", "accumulated ddp")])
def test_a_rank_without_memory_makes_all_split_and_the_update_is_the_same(split: str, whole: str, found: dict[str, Any]) -> None:  # fmt: skip
    close(found[split], found[whole])
    assert found[split]["events"] > 0  # the first rank has memory enough: it heard of it


@pytest.mark.slow
def test_a_single_row_that_does_not_fit_ends_every_rank(found: dict[str, Any]) -> None:
    assert found["hopeless"] == {"codes": ["out-of-memory-row"]}
