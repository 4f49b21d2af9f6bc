"""Adapters in a plain Trainer on two CPU ranks, under DDP and ZeRO 1 to 3, learn what one process learns."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from tunekit.attach import load, prepare
from tunekit.methods.bottleneck_adapter import BottleneckAdapter
from tunekit.task import Task

TASK = Task.named("sequence-classification")
RANK = Path(__file__).with_name("adapter_rank.py")


def prepared_inputs(folder: Path) -> None:
    """The base, and two adapters for the fusion, named in a file beside its output."""
    zoo.build("bert", TASK).save_pretrained(folder / "base")
    paths = []
    for name in ("first", "second"):
        torch.manual_seed(len(paths))
        prepare(zoo.build("bert", TASK), BottleneckAdapter(), TASK).save_pretrained(folder / name)
        paths.append(str(folder / name))
    (folder / "adapters.json").write_text(json.dumps(paths))


def trained(folder: Path, kind: str, stage: int | None, ranks: int) -> dict[str, torch.Tensor]:
    output, config = folder / f"out-{kind}-{stage}-{ranks}", []
    if stage is not None:
        path = folder / f"zero{stage}.json"
        zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
        adam = {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}}
        path.write_text(json.dumps({"zero_optimization": zero, "optimizer": adam, "train_micro_batch_size_per_gpu": 8,
                                    "gradient_clipping": 1.0}))  # fmt: skip
        config = [str(path)]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
    }
    if stage is None:
        # With a DeepSpeed file accelerate 1.15 would take this as a wish for plain DDP, and leave the file out in silence.
        env["ACCELERATE_USE_CPU"] = "true"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*launch, str(RANK)] if ranks > 1 else [sys.executable, str(RANK)]
    done = subprocess.run([*command, kind, str(output), *config], capture_output=True, text=True, timeout=540, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    load(zoo.build("bert", TASK), output)
    return load_file(output / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, torch.Tensor]]]:
    """A folder with base and adapters, and what one process learnt there of a kind; each kind once."""
    folder = tmp_path_factory.mktemp("adapters")
    prepared_inputs(folder)
    return functools.cache(lambda kind: (folder, trained(folder, kind, None, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pfeiffer", "houlsby", "parallel", "fusion"])
@pytest.mark.parametrize("stage", [None, 1, 2, 3], ids=["ddp", "zero1", "zero2", "zero3"])
def test_two_ranks_learn_what_one_process_learns(
    kind: str, stage: int | None, alone: Callable[[str], tuple[Path, dict[str, torch.Tensor]]]
) -> None:
    if stage is not None:
        pytest.importorskip("deepspeed")
    folder, expected = alone(kind)
    together = trained(folder, kind, stage, 2)
    assert expected.keys() == together.keys()
    for name, value in expected.items():
        assert torch.allclose(value, together[name], atol=1e-3), name
