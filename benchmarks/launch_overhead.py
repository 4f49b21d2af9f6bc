"""Start-up of `tunekit launch` beside plain `accelerate launch` with the same file and the same training command.

    python benchmarks/launch_overhead.py [--pairs 5]

Both start two CPU ranks that end as soon as they are there (`tunekit train --help` in each), in turn, so that what a pair sees of
the machine is alike. Wall seconds from the call to the first rank's first line of Python, and CPU seconds of everything.
Results: benchmarks/results/launch_overhead.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "launch_overhead.json"
_STAMP = """import os, sys, time
if os.environ.get("RANK") == "0" and os.environ.get("TUNEKIT_STAMP"):
    open(os.environ["TUNEKIT_STAMP"], "w").write(repr(time.time()))
    os._exit(0)
if os.environ.get("RANK") is not None and os.environ.get("TUNEKIT_STAMP"):
    os._exit(0)
"""


def write_plan(folder: Path) -> Path:
    import tunekit

    (folder / "rows.jsonl").write_text('{"text": "a row"}\n')
    plan = tunekit.Plan(
        model=str(folder), task="causal-lm", method=tunekit.methods.Lora(), num_processes=2, sharding="zero3",
        data=tunekit.DataSpec(path=str(folder / "rows.jsonl")), output_dir=str(folder / "run"),
    )  # fmt: skip
    return plan.save(folder / "plan.yaml")


def timed(command: list[str], folder: Path, extra: dict[str, str]) -> tuple[float, float]:
    """Wall seconds to the first line of rank 0, and CPU seconds of all children."""
    stamp = folder / "stamp"
    stamp.unlink(missing_ok=True)
    # `sitecustomize` is what Python runs first: the ranks say when they are there, and end.
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, **extra, "PYTHONPATH": path, "TUNEKIT_STAMP": str(stamp), "OMP_NUM_THREADS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert stamp.exists(), done.stderr[-2000:]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(stamp.read_text()) - start, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(_STAMP)
        plan = write_plan(folder)
        ours = [sys.executable, "-m", "tunekit", "launch", str(plan)]
        told = json.loads(
            subprocess.run([*ours, "--dry-run", "--json"], capture_output=True, text=True, check=True).stdout
        )
        pairs = []
        for i in range(args.pairs + 1):
            plain, launched = timed(told["command"], folder, told["environment"]), timed(ours, folder, {})
            if i:  # the first pair reads the disk
                pairs.append(
                    {
                        "plain_seconds": plain[0],
                        "launch_seconds": launched[0],
                        "plain_cpu": plain[1],
                        "launch_cpu": launched[1],
                    }
                )
                print(
                    f"accelerate launch {plain[0]:.2f} s, tunekit launch {launched[0]:.2f} s; CPU {plain[1]:.2f} and {launched[1]:.2f} s"
                )
    wall = statistics.median(p["launch_seconds"] - p["plain_seconds"] for p in pairs)
    cpu = statistics.median(p["launch_cpu"] - p["plain_cpu"] for p in pairs)
    print(f"tunekit launch adds {wall:.2f} s (median of {len(pairs)} pairs; {cpu:.2f} s of CPU)")
    RESULTS.write_text(json.dumps({"adds_seconds": wall, "adds_cpu_seconds": cpu, "pairs": pairs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
