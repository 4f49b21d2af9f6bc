"""Runs every cell of the table of what combines on two ranks, in as few launches as can be, and writes docs/matrix-sharding.md.

    python benchmarks/matrix_sharding.py [--folder DIR] [--seconds N] [--only lora] [--page]

Results are kept in benchmarks/results/matrix_sharding.json cell by cell; a cell that has one is not run again unless --again.
With --folder the models, rows and outputs are kept there; with --seconds it stops in time and goes on at the next call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from sharing.cells import every_cell, materials, refusal
from sharing.page import PAGE, RESULTS, page
from sharing.run import run, verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--only", nargs="*", default=[], help="words that a cell's key must hold")
    parser.add_argument("--page", action="store_true", help="write the page from what is there, and run nothing")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        if not (folder / "material").is_dir():
            materials(folder / "material")
        cells = list(every_cell())
        refused = {c.key: why for c in cells if (why := refusal(c, folder / "material")) is not None}
        found: dict[str, Any] = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() and not args.again else {}
        wanted = [
            c
            for c in cells
            if c.key not in refused and c.key not in found and all(w in c.key.split() for w in args.only)
        ]
        print(f"{len(cells)} cells, {len(refused)} refused, {len(wanted)} to run")
        if not args.page and wanted:
            one, two = ([c for c in wanted if (c.sharing == "one") is alone] for alone in (True, False))
            alone = run({*(c.alone for c in wanted), *one}, folder / "material", folder / "one.json", 1, args.seconds)
            both = {**alone, **run(two, folder / "material", folder / "two.json", 2, args.seconds)}
            for c in wanted:
                if c.key in both and c.alone.key in both:
                    found[c.key] = verdict(c, both[c.key], both[c.alone.key])
        versions = {
            name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "deepspeed", "bitsandbytes")
        }
        found = {c.key: found[c.key] for c in cells if c.key in found and c.key not in refused}
        RESULTS.write_text(json.dumps({"versions": versions, "cells": found}, indent=1) + "\n")
        PAGE.write_text(page({"versions": versions, "cells": found}, refused))
        bad = {k: v for k, v in found.items() if v[0] != "works"}
        print(f"{len(found)} run, {len(bad)} do not work")
        for key, told in bad.items():
            print(f"  {key}: {told[0]}: {told[1]}")


if __name__ == "__main__":
    main()
