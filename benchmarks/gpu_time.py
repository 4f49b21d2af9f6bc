"""Seconds a step of seventy short runs on this GPU beside what is predicted for them.

    python benchmarks/gpu_time.py [--device cpu --tiny] [--minutes 8] [--only TEXT] [--out FILE]

As `gpu_memory.py`, with eight steps a run: the middle one of those after the first counts, the device waited for at either
end. What is compared most closely is the ratio between runs; one factor for the device is `tunekit calibrate`'s to find.
"""

from __future__ import annotations

from statistics import median

import gpu_memory
import gpu_runs


def main() -> None:
    asked = gpu_memory.arguments(__doc__ or "", "gpu_time.csv")
    rows = gpu_runs.all_rows(
        asked.out, asked.device, asked.tiny, 3 if asked.tiny else 8, 60 * asked.minutes, asked.only
    )
    show(rows)


def show(rows: list[dict[str, str]]) -> None:
    """The table."""
    fine = [r for r in rows if r["status"] == "ok"]
    if not fine:
        return
    ratios = {r["run"]: float(r["predicted_step_seconds"]) / float(r["step_seconds"]) for r in fine}
    middle = median(ratios.values())
    print(f"\n{'run':<90}{'measured':>10}{'predicted':>10}{'ratio':>8}{'to middle':>10}")
    for row in fine:
        ratio = ratios[row["run"]]
        print(
            f"{row['run'][:88]:<90}{1000 * float(row['step_seconds']):>7.1f} ms{1000 * float(row['predicted_step_seconds']):>7.1f} ms"
            f"{ratio:>8.2f}{ratio / middle:>10.2f}"
        )
    near = sum(abs(r / middle - 1) <= 0.15 for r in ratios.values())
    print(
        f"\n{len(fine)} runs: middle ratio {middle:.2f}; {near} within 15 % of it, {sum(0.7 <= r <= 1.3 for r in ratios.values())} within 30 % of 1"
    )


if __name__ == "__main__":
    main()
