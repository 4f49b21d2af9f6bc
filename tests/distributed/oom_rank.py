"""One rank of runs of which one rank has little memory: `oom_rank.py OUTPUT.json`. The first rank writes what came of each."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from plain_runs import trainer

import tunekit
import zoo
from tunekit.errors import RunError
from tunekit.mixin import TunekitTrainer
from tunekit.task import Task

CLS = "sequence-classification"


def little_memory(model: nn.Module, most: int) -> None:
    """The backward of the last block fails where it has more rows."""

    def check(module: nn.Module, given: Any, out: Any) -> None:
        if len(out[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    next(m for m in model.modules() if isinstance(m, nn.ModuleList))[-1].register_full_backward_hook(check)


def run(
    most: int | None, over_ranks: bool, accumulation: int = 1, task: str = CLS, architecture: str = "bert"
) -> dict[str, Any]:
    model = tunekit.prepare(zoo.build(architecture, Task.named(task)), tunekit.methods.Lora(r=2), task)
    if most is not None and torch.distributed.get_rank() == 1:
        little_memory(model, most)
    made = trainer(
        Path(tempfile.mkdtemp()), architecture, task, model, cls=TunekitTrainer, max_steps=3, save_strategy="no", optim="sgd",
        learning_rate=0.1, logging_steps=1, disable_tqdm=True, per_device_train_batch_size=8, gradient_accumulation_steps=accumulation,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    made.oom_over_ranks = over_ranks
    try:
        made.train()
    except RunError as e:
        return {"codes": list(e.codes)}
    return {
        "losses": [e["loss"] for e in made.state.log_history if "loss" in e],
        "weights": {n: p.tolist() for n, p in model.named_parameters() if p.requires_grad},
        "events": len(made.oom_recovery.events),
        "type": str(made.accelerator.distributed_type),
    }


def main(output: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {
        "ddp": run(None, False),
        "agreed": run(None, True),
        "split": run(3, True),
        "accumulated ddp": run(None, False, 2, "causal-lm", "llama"),
        "accumulated split": run(3, True, 2, "causal-lm", "llama"),
        "hopeless": run(0, True),
    }
    if torch.distributed.get_rank() == 0:
        output.write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
