"""How do two processes share a model? ZeRO-3 from a plan: the same command on two CPU cores and on eight GPUs.

python examples/zero3.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import tunekit
from small import arguments, opinions, scratch, small_model


def main() -> None:
    asked = arguments(__doc__, steps=6)
    rows = opinions(64)
    folder = Path(scratch("zero3")).parent
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    plan = tunekit.Plan(
        model=asked.model or small_model("bert", [r["text"] for r in rows]), task="sequence-classification", method=tunekit.methods.Lora(r=8),
        data=tunekit.DataSpec(path=str(folder / "rows.jsonl"), eval_share=0.25), sharding="zero3", num_processes=2, max_steps=asked.steps,
        output_dir=str(folder / "run"),
    )  # fmt: skip
    plan.save(folder / "plan.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "tunekit", "launch", str(folder / "plan.yaml")], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    print(*done.stdout.splitlines()[-3:], sep="\n")
    model, _, _ = tunekit.reopen(folder / "run")
    print("reopened in one process:", type(model).__name__)


if __name__ == "__main__":
    main()
