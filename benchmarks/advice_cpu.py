"""Processor seconds of a whole ranked answer, after imports: an 8B decoder on 8 GPUs and a 405B one on 32.

    python benchmarks/advice_cpu.py
    python benchmarks/advice_cpu.py --times 5 --write     adds rows to results/advice_cpu.csv

Each answer is asked in a process of its own, so that nothing is cached from another one. Other work on the machine raises
processor time too: the load beside it is printed.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import logging
import os
import pkgutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "advice_cpu.csv"
QUESTIONS: dict[str, tuple[dict[str, int], str, float]] = {
    "8B on 8 GPUs": (
        {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
        "8xH100", 3.0,
    ),
    "405B on 32 GPUs": (
        {"hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128, "intermediate_size": 53248},
        "4x8xH100", 6.0,
    ),
}  # fmt: skip
"""Question to (sizes of a Llama, hardware, seconds asked)."""


def ask(question: str) -> float:
    """Processor seconds of one answer, with every import that it needs done before."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import peft.tuners.lora  # noqa: F401
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: F401

    import tunekit
    import tunekit.advisor.ask
    from tunekit.advisor import simulate
    from tunekit.discovery import everything

    for kind in ("method", "objective", "rule"):
        everything(kind)
    for module in pkgutil.iter_modules(simulate.__path__):
        importlib.import_module(f"{simulate.__name__}.{module.name}")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sizes, hardware, _ = QUESTIONS[question]
    config: Any = LlamaConfig(**sizes, num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192)
    started = time.process_time()
    advice = tunekit.advise(config, num_examples=10_000, mean_tokens=300, hardware=hardware)
    seconds = time.process_time() - started
    assert advice.ranked, "an answer without a plan would be no measurement"
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"add rows to {RESULTS.name}")
    parser.add_argument("--question", choices=QUESTIONS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.question:
        print(ask(asked.question))
        return
    rows = []
    for question, (_, _, limit) in QUESTIONS.items():
        for _ in range(asked.times):
            told = subprocess.run(
                [sys.executable, __file__, "--question", question], capture_output=True, text=True, check=True
            )
            rows.append({"question": question, "cpu_seconds": round(float(told.stdout.split()[-1]), 2), "asked": limit,
                         "load": round(os.getloadavg()[0], 1)})  # fmt: skip
            print(*rows[-1].values(), sep="\t", flush=True)
    if asked.write:
        new = not RESULTS.exists()
        with RESULTS.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            if new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
