"""What one process sees of several, all of them act on: a rank that stopped alone would leave the others waiting for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RANK = """
import sys
from types import SimpleNamespace
import torch
from tunekit.callbacks import LossGuard

rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
guard, control = LossGuard(), SimpleNamespace(should_training_stop=False, should_save=True, should_log=True)
args = SimpleNamespace(world_size=2, device=torch.device("cpu"))
state = SimpleNamespace(global_step=3, is_world_process_zero=rank == 0)
guard._seen = [(3, 1, torch.tensor(float("nan") if rank else 1.0))]
guard.on_step_end(args, state, control)
guard.on_log(args, state, control, logs={"loss": 1.0, "grad_norm": 1.0})    # what all ranks are told is finite
print(control.should_training_stop, control.should_save, [f.code for f in guard.findings])
"""


def test_all_ranks_stop_where_one_saw_a_loss_that_is_no_number(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    told = [rank.communicate(timeout=120) for rank in ranks]
    assert [out.split()[:2] for out, _ in told] == [["True", "False"]] * 2, told
    assert "loss-not-finite" in told[1][0], "who saw it says so"
