"""One rank that trains plans and writes which rows it saw: `rows_rank.py OUT PLAN...`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import tunekit
from tunekit import material


def main(out: Path, plans: list[str]) -> None:
    """Each plan: rows by step, losses, metrics, and how often this process tokenised before and after there was a group."""
    torch.set_num_threads(1)
    tokenised: list[bool] = []
    encode = material.encode

    def counted(*args: Any, **kwargs: Any) -> Any:
        tokenised.append(torch.distributed.is_initialized())
        return encode(*args, **kwargs)

    material.encode = counted
    found = []
    for path in plans:
        plan = tunekit.Plan.load(path)
        trainer = tunekit.trainer(plan, logging_steps=1, disable_tqdm=True, save_strategy="no", log_level="error", log_level_replica="error", eval_strategy="no", load_best_model_at_end=False)  # fmt: skip
        seen: list[list[str]] = []
        step = trainer.compute_loss

        def watched(model: Any, inputs: Any, *args: Any, step: Any = step, seen: Any = seen, **kwargs: Any) -> Any:
            taught = inputs["labels"] != -100
            seen.append([" ".join(map(str, row[row > 0].tolist())) for row in inputs["input_ids"][taught]])
            return step(model, inputs, *args, **kwargs)

        trainer.compute_loss = watched
        trainer.train()
        trainer.compute_loss = step
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        scores = {k: v for k, v in trainer.evaluate().items() if "second" not in k and "runtime" not in k}
        found.append({"rows": seen, "losses": losses, "scores": scores, "tokenised": list(tokenised)})
        tokenised.clear()
    out.with_suffix(f".{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), sys.argv[2:])
