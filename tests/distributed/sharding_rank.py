"""One rank that trains several plans one after the other: `sharding_rank.py JOBS.json`.

A job is `{"plan": file, "result": file}`; the first rank writes the losses of every step and the logits of the trained
model for the evaluation rows.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

import tunekit


def main(jobs: Path) -> None:
    """Trains, saves and predicts."""
    torch.set_num_threads(1)
    for job in json.loads(jobs.read_text()):
        plan = tunekit.Plan.load(job["plan"])
        trainer = tunekit.trainer(
            plan, logging_steps=1, disable_tqdm=True, save_strategy="no", eval_strategy="no", load_best_model_at_end=False,
            batch_eval_metrics=False, log_level="error", log_level_replica="error",
        )  # fmt: skip
        trainer.compute_metrics = trainer.preprocess_logits_for_metrics = None
        trainer.train()
        logits = trainer.predict(trainer.eval_dataset).predictions
        trainer.save_model(plan.output_dir)
        if trainer.is_world_process_zero():
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            result = {"losses": losses, "logits": logits.tolist(), "type": str(trainer.accelerator.distributed_type)}
            Path(job["result"]).write_text(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
