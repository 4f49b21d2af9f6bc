"""One rank that tries many cells, one after the other: `rank.py FOLDER CELLS.json RESULTS.json`.

The first rank writes the results after each cell, and its key before it, so that a cell which ends the process is known.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import tunekit
from sharing.cells import TASK, Cell, plan
from tunekit.pretrained import load_model
from tunekit.sharding import whole_weights

FIRST = os.environ.get("RANK", "0") == "0"
_OURS: dict[str, Any] = {
    "logging_steps": 1, "disable_tqdm": True, "save_strategy": "no", "log_level": "error", "log_level_replica": "error",
}  # fmt: skip


def main(folder: Path, cells: Path, results: Path) -> None:
    """Tries the cells that have no result yet."""
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    done = json.loads(results.read_text()) if results.exists() else {}
    for cell in [Cell(**c) for c in json.loads(cells.read_text())]:
        if cell.key in done:
            continue
        if FIRST:
            results.with_suffix(".now").write_text(cell.key)
        try:
            done[cell.key] = tried(cell, folder)
        except Exception as e:
            place = traceback.extract_tb(e.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            done[cell.key] = {"error": f"{type(e).__name__}: {' '.join(str(e).split())[:300]} ({where})"}
        if not gc.get_freeze_count():
            # The Trainer collects garbage after each run: what is imported now need not be looked through every time.
            gc.collect()
            gc.freeze()
        if FIRST:  # whole or not at all: it may be ended at any time
            results.with_suffix(".new").write_text(json.dumps(done, indent=1))
            results.with_suffix(".new").replace(results)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def tried(cell: Cell, folder: Path) -> dict[str, Any]:
    """Losses, how far the answers moved, how far those of the reopened folder are from them, and this rank's share."""
    made = plan(cell, folder)
    trainer = tunekit.trainer(made, overwrite=True, **_OURS)
    rows = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    trainer.train()
    said = answers(trainer.model_wrapped, rows)
    trainer.save_model(made.output_dir)
    shares = [(local(p).numel(), whole(p)) for p in trainer.model.parameters()]
    result = {
        "type": str(trainer.accelerator.distributed_type).rpartition(".")[2],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "share": sum(a for a, _ in shares) / sum(b for _, b in shares),
    }
    if FIRST:
        with whole_weights():
            base = load_model(made.replace(num_processes=1, sharding=None, offload=None))
            before = answers(base, rows)
            if made.method.slug == "full":
                base = type(base).from_pretrained(made.output_dir)
            else:
                base = tunekit.load(base, made.output_dir, task=TASK)
        result |= {"moved": apart(said, before), "reopened": apart(said, answers(base, rows))}
    return result


def answers(model: Any, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        logits = model(**rows).logits[:, -rows["input_ids"].shape[1] :]
    return logits.float()[rows["attention_mask"].bool()].clone()


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max())


def local(p: torch.Tensor) -> torch.Tensor:
    """What of a parameter lies on this rank."""
    if hasattr(p, "ds_tensor"):
        return p.ds_tensor
    return p.to_local() if hasattr(p, "to_local") else p  # type: ignore[no-any-return]


def whole(p: torch.Tensor) -> int:
    return int(getattr(p, "ds_numel", p.numel()))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*map(Path, sys.argv[1:4]))
