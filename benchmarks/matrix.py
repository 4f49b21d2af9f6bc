"""Runs every cell of the matrix, ours and plain PEFT's, and writes docs/matrix.md.

python benchmarks/matrix.py                 our half, with the processes that the cores allow
python benchmarks/matrix.py --peft          plain PEFT's half too
python benchmarks/matrix.py --only lora     some methods only; the others keep their results (--architectures: likewise)
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


Found = dict[str, list[str]] | None


def run(task: tuple[str, Any]) -> tuple[str, Any, Found, float]:
    """One cell of one half, and the CPU seconds that it took."""
    import torch

    from matrix import cell as ours
    from matrix import peft_cell as theirs

    torch.set_num_threads(1)
    # The Trainer collects garbage after each run: what was imported need not be looked through every time.
    gc.collect()
    gc.freeze()
    half, cell = task
    start = time.process_time()
    found = (ours if half == "cells" else theirs).run_cell(cell)
    seconds = time.process_time() - start
    if found is None:
        return half, cell, None, seconds
    said = {name: [r.status, r.code, r.seen] for name, r in zip(("off", "on"), found, strict=True)}
    return half, cell, said, seconds


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name).split("+")[0] for name in ("transformers", "peft", "torch")}


def main() -> None:
    from matrix.cells import METHODS, every_cell
    from matrix.page import PAGE, RESULTS, page, read
    from zoo import ARCHITECTURES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peft", action="store_true", help="run plain PEFT's half too")
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--architectures", nargs="*", default=list(ARCHITECTURES), choices=ARCHITECTURES, metavar="NAME"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    results = read() if RESULTS.is_file() else {"versions": {}, "cells": {}, "peft": {}}
    cells = [c for c in every_cell() if c.method in asked.only and c.architecture in asked.architectures]
    whole = len(asked.architectures) == len(ARCHITECTURES)
    work = [("cells", c) for c in cells] + [("peft", c) for c in cells if asked.peft]
    start, counts, seconds = time.perf_counter(), Counter[tuple[str, str]](), Counter[str]()
    with ProcessPoolExecutor(asked.jobs) as pool:
        for half, cell, found, took in pool.map(run, work, chunksize=8):
            if found is None:
                continue
            results[half][cell.key] = found
            seconds.update({cell.method: took} if half == "cells" and whole else {})
            counts.update((half, status) for status, *_ in found.values())
            for name, (status, code, seen) in found.items():
                if half == "cells" and status in ("fails", "wrong"):
                    print(f"{cell.key}, checkpointing {name}: {status}: {code}: {seen}", flush=True)
    known = {c.key for c in every_cell()}
    for half in ("cells", "peft"):
        results[half] = {key: value for key, value in sorted(results[half].items()) if key in known}
    results["versions"] = versions()
    results["cpu_seconds"] = results.get("cpu_seconds", {}) | {m: round(s, 1) for m, s in seconds.items()}
    RESULTS.parent.mkdir(exist_ok=True)
    lines = [f'"{half}": {{\n' + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in results[half].items()) + "\n}"
             for half in ("versions", "cpu_seconds", "cells", "peft")]  # fmt: skip
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(results))
    for half, name in (("cells", "tunekit"), ("peft", "plain PEFT")):
        if said := {status: n for (h, status), n in sorted(counts.items()) if h == half}:
            print(f"{name}: {said}")
    print(f"{time.perf_counter() - start:.0f} s, {asked.jobs} processes; wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
