"""One rank that distils several plans one after the other: `distillation_rank.py JOBS.json`.

A job is `{"plan": file, "result": file}`; the first rank writes the losses of every step, and whether the teacher is whole.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

import tunekit
from tunekit.own_module import own_parameters


def main(jobs: Path) -> None:
    """Trains and saves."""
    torch.set_num_threads(1)
    for job in json.loads(jobs.read_text()):
        plan = tunekit.Plan.load(job["plan"])
        trainer = tunekit.trainer(plan, logging_steps=1, disable_tqdm=True, save_strategy="no", log_level="error", log_level_replica="error")  # fmt: skip
        trainer.train()
        trainer.save_model(plan.output_dir)
        if not trainer.is_world_process_zero():
            continue
        objective = trainer.learning_objective
        teacher = objective.teacher_of(trainer.model) if getattr(objective, "asks_teacher", False) else None
        held = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
        result = {
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "teacher_whole": teacher is None
            or all(p.numel() and not hasattr(p, "ds_id") for p in teacher.parameters()),
            "teacher_learns": teacher is not None
            and any(id(p) in held or p.requires_grad for p in teacher.parameters()),
            "projections": len(own_parameters(trainer.model)),
            "type": str(trainer.accelerator.distributed_type),
        }
        Path(job["result"]).write_text(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
