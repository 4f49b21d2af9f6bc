"""What PyTorch's own MemTracker says of PEFT's published runs: the same model, method and batch under FakeTensorMode.

    python benchmarks/mem_tracker.py [FOLDER] [--length 695] [--out FILE]

Two whole training steps of the full model (forward, loss, backward, clipping, AdamW) on fake tensors; the peak that
`torch.distributed._tools.mem_tracker.MemTracker` counts. It knows neither the allocator nor the device's kernels. Rows are
written as they come and kept: a second run goes on. `memory_accuracy.py` reads the file and prints the column.
"""

# ruff: noqa: E402 (the rows are shared with the tests, whose folder has to be found first)
from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]

import peft_rows
import torch

from tunekit.advisor.weightless import build
from tunekit.task import Task

LENGTH = 695
"""The longest padded length, as `peft_rows.fit_length` finds it on LoRA r=32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE.parent.parent / "shared" / "measured")
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "mem_tracker.json")
    asked = parser.parse_args()
    if (asked.folder / peft_rows.CSV.name).exists():
        peft_rows.CSV = asked.folder / peft_rows.CSV.name
    done: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    for row in peft_rows.rows():
        name = row["experiment"]
        if name not in done:
            done[name] = _tracked(row, asked.length)
            asked.out.write_text(json.dumps(done, indent=1) + "\n")
        said, measured = done[name], peft_rows.reserved(row)
        figure = f"{said['bytes'] / measured - 1:+.1%}" if "bytes" in said else said["failed"]
        print(f"{name:<44}{said['seconds']:>7.1f} s  {figure}", flush=True)


def _tracked(row: dict[str, str], length: int) -> dict[str, Any]:
    """The peak, or why there is none; and the processor time that it took."""
    at = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: dict[str, Any] = {"bytes": _peak(row, length)}
    except Exception as e:
        found = {"failed": " ".join(f"{type(e).__name__}: {e}".split())[:160]}
    return {**found, "seconds": round(time.process_time() - at, 1)}


def _peak(row: dict[str, str], length: int) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with torch.device("meta"):
        bare = build(peft_rows.LLAMA, Task.named("causal-lm"), dtype="bfloat16")
        model = peft_rows.plan(row, length).method.apply(bare, Task.named("causal-lm"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        _made_fake(model)
        model.train()
        params = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(params, foreach=True)
        batch = {
            n: torch.ones((int(row["batch_size"]), length), dtype=torch.long)
            for n in ("input_ids", "attention_mask", "labels")
        }
        tracker = MemTracker()
        for p in model.parameters():
            if (
                not p.requires_grad
            ):  # it hangs a hook on every parameter that has none, which frozen ones refuse (torch 2.13)
                tracker._param_to_grad_hook_handles[p] = (_NoHook(), _NoHook())
        tracker.track_external(model, optimizer, *batch.values())
        with tracker:
            for _ in range(2):
                tracker.reset_mod_stats()
                optimizer.zero_grad()
                loss = model(**batch).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(params, 1.0)
                optimizer.step()
        peak = tracker.get_tracker_snapshot("peak")
    return max(sum(n for part, n in parts.items() if "Total" in str(part)) for parts in peak.values())


class _NoHook:
    """Stands for a hook that is not there."""

    def remove(self) -> None:
        """Nothing to take away."""


def _made_fake(model: torch.nn.Module) -> None:
    """Puts fake tensors on the processor in the place of weightless ones; tied ones stay tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, t in held.items():
                if t is None:
                    continue
                if id(t) not in made:
                    fake = torch.empty(t.shape, dtype=t.dtype, device="cpu")
                    made[id(t)] = (
                        torch.nn.Parameter(fake, t.requires_grad) if isinstance(t, torch.nn.Parameter) else fake
                    )
                held[name] = made[id(t)]


if __name__ == "__main__":
    main()
