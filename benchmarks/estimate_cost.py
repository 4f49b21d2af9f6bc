"""Processor seconds and memory of one estimate, after imports: a 3B decoder on one card, a 405B one on 32.

    python benchmarks/estimate_cost.py
    python benchmarks/estimate_cost.py --times 5 --write     replaces results/estimate_cost.csv

Each estimate is asked in a process of its own, so that nothing is cached from another one; what counts is the first call. Once
every row is as long as `max_length` (one batch is replayed), once a thousand rows have lengths of their own (batches of the
data's lengths are replayed). The process's memory stands beside it: of that the imports take the larger part. Other work on the
machine raises processor time too: the load is printed.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import logging
import os
import pkgutil
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "estimate_cost.csv"
MODELS: dict[str, tuple[dict[str, Any], str, str | None, float]] = {
    "3B": (
        {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "intermediate_size": 8192,
         "tie_word_embeddings": True},
        "L40S", None, 1.0,
    ),
    "405B": (
        {"hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128, "intermediate_size": 53248},
        "4x8xH100", "zero3", 3.0,
    ),
}  # fmt: skip
"""Model to (sizes of a Llama, hardware, sharding, seconds asked)."""
METHODS = ("Lora", "Full", "PrefixTuning")
LENGTHS = ("longest", "thousand rows")


def ask(model: str, method: str, lengths: str) -> dict[str, float]:
    """Processor seconds of the first estimate in a process, and the most memory that the process held, in GiB."""
    import accelerate  # noqa: F401
    import peft.tuners.lora  # noqa: F401
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: F401

    import tunekit
    from tunekit.advisor import simulate
    from tunekit.discovery import everything

    for kind in ("method", "objective"):
        everything(kind)
    for module in pkgutil.iter_modules(simulate.__path__):
        importlib.import_module(f"{simulate.__name__}.{module.name}")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sizes, hardware, sharding, _ = MODELS[model]
    drawn = random.Random(0)
    rows = [min(2048, 32 + int(drawn.expovariate(1 / 300))) for _ in range(1000)] if lengths != "longest" else None
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(**sizes, num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)
        plan = tunekit.Plan(
            model=folder, task="causal-lm", method=getattr(tunekit.methods, method)(), max_length=2048,
            per_device_train_batch_size=4, activation_checkpointing=True, dtype="bfloat16", sharding=sharding,
            num_processes=32 if sharding else 1, num_machines=4 if sharding else 1,
        )  # fmt: skip
        imports = _held()
        started = time.process_time()
        estimate = tunekit.estimate_memory(plan, hardware, rows)
        seconds = time.process_time() - started
    assert estimate.fidelity == "traced", "a coarse answer would be no measurement"
    return {"cpu_seconds": seconds, "imports_gib": imports, "peak_gib": _held()}


def _held() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"replaces {RESULTS.name}")
    parser.add_argument("--question", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.question:
        print(json.dumps(ask(*asked.question)))
        return
    rows = []
    for model, (*_, limit) in MODELS.items():
        for method in METHODS:
            for lengths in LENGTHS:
                command = [sys.executable, __file__, "--question", model, method, lengths]
                told = [
                    json.loads(
                        subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
                    )
                    for _ in range(asked.times)
                ]
                seconds = sorted(round(t["cpu_seconds"], 2) for t in told)
                rows.append({
                    "model": model, "method": method, "lengths": lengths, "cpu_seconds": seconds[len(seconds) // 2],
                    "least": seconds[0], "most": seconds[-1], "asked": limit,
                    "peak_gib": round(max(t["peak_gib"] for t in told), 2),
                    "imports_gib": round(max(t["imports_gib"] for t in told), 2), "load": round(os.getloadavg()[0], 1),
                })  # fmt: skip
                print(*rows[-1].values(), sep="\t", flush=True)
    if asked.write:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
