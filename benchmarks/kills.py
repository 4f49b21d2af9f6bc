"""Kills runs at random moments of training and of saving, and tells them to go, and counts how the resumed ones end.

python benchmarks/kills.py                20 SIGKILLs and 3 SIGTERMs for each kind of run; kinds that are done are not repeated
python benchmarks/kills.py --only lora    one kind
python benchmarks/kills.py --table        only prints what was seen

Half of the kills come at a random time of the clock, half at a random operation on the disk (fsync, rename, a file that is
begun). `plain-trainer` saves as transformers does, and is resumed from `tunekit.last_checkpoint`. Bit-identical: weights,
moments, schedule and random state of the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "kills.json"
KINDS = ("full", "lora", "prefix", "adapter", "distillation", "unfreezing", "grouped", "workers", "plain-trainer")


def tried(kind: str, kills: int, signals: int) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "tests" / "killed_runs.py"), kind, "--kills", str(kills), "--signals", str(signals)]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode:
        raise SystemExit(f"{kind}: exit {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def row(kind: str, entries: list[dict[str, Any]]) -> tuple[str, ...]:
    kills = [e for e in entries if "step" not in e]
    told = [e for e in entries if "step" in e]
    hit = sum(e["code"] == -9 for e in kills)
    within = sum(e["code"] == 75 and e["done"][-1:] == [e["step"]] for e in told)
    return (
        kind, f"{hit} of {len(kills)}", str(sum(e["resumes_from"] is not None for e in kills)),
        str(sum(len(e["lost"]) for e in entries)), str(sum(len(e["torn"]) for e in entries)),
        f"{sum(e['identical'] for e in kills)} of {len(kills)}", f"{within} of {len(told)}",
        f"{sum(e['identical'] for e in told)} of {len(told)}",
    )  # fmt: skip


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    head = (
        "run", "killed", "had a checkpoint", "lost", "torn, stepped over", "bit-identical after it", "SIGTERM: saved in that step",
        "bit-identical after it",
    )  # fmt: skip
    lines = [head, tuple("---" for _ in head), *(row(k, results[k]) for k in KINDS if k in results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signals", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for kind in () if asked.table else [asked.only] if asked.only else [k for k in KINDS if k not in results]:
        results[kind] = tried(kind, asked.kills, asked.signals)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
