"""Peak memory of seventy short runs on this GPU beside what is predicted for them.

    python benchmarks/gpu_memory.py [--device cpu --tiny] [--minutes 8] [--only TEXT] [--out FILE]

Needs torch, transformers, peft and this checkout; bitsandbytes for the quantised rows. Weights are random and nothing is
downloaded. Each row is added to the CSV as soon as it is there, so that a run that was cut short goes on where it stopped.
On the CPU (`--device cpu --tiny`) the models are tiny and every configuration's code path is run; the figures mean nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import gpu_runs

GIB = 2**30


def main() -> None:
    asked = arguments(__doc__ or "", "gpu_memory.csv")
    rows = gpu_runs.all_rows(asked.out, asked.device, asked.tiny, 3, 60 * asked.minutes, asked.only)
    show(rows)


def arguments(what: str, out: str) -> argparse.Namespace:
    """The options of both scripts."""
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models: the code paths alone")
    parser.add_argument("--minutes", type=float, default=7.5, help="no run is begun after this")
    parser.add_argument("--only", default="", help="a part of the names of the runs to take")
    parser.add_argument("--out", type=Path, default=gpu_runs.HERE / "results" / out)
    return parser.parse_args()


def show(rows: list[dict[str, str]]) -> None:
    """The table."""
    print(f"\n{'run':<90}{'measured':>10}{'predicted':>10}{'error':>8}")
    errors = []
    for row in (r for r in rows if r["status"] == "ok"):
        measured, predicted = float(row["reserved_bytes"]), float(row["predicted_reserved_bytes"])
        errors.append(predicted / measured - 1)
        print(f"{row['run'][:88]:<90}{measured / GIB:>10.2f}{predicted / GIB:>10.2f}{errors[-1]:>+8.1%}")
    for row in (r for r in rows if r["status"] != "ok"):
        print(f"{row['run'][:88]:<90}{row['status']}")
    if errors:
        low = sum(e < -0.03 for e in errors)
        print(
            f"\n{len(errors)} runs: median error {median(map(abs, errors)):.1%}, worst {max(map(abs, errors)):.1%}, {low} more than 3 % too low"
        )


if __name__ == "__main__":
    main()
