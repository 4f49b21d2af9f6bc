"""Runs cells on one process or on two ranks, as few launches as can be, and says what became of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sharing.cells import SHARINGS, Cell

NEAR_CURVE, NEAR_ANSWERS, MOVED = 1e-4, 1e-5, 1e-3
_STALLED_SECONDS = 300


def run(cells: Iterable[Cell], folder: Path, results: Path, ranks: int, seconds: float | None = None) -> dict[str, Any]:
    """Figures or an error by key, of as many as there is time for. A cell that ends the ranks is written down and the rest started again."""
    wanted = list(cells)
    path = results.with_suffix(f".cells-{ranks}.json")
    path.write_text(json.dumps([c.to_dict() for c in wanted]))
    until = None if seconds is None else time.monotonic() + seconds
    while any(c.key not in _read(results) for c in wanted) and (until is None or time.monotonic() < until):
        before = _read(results)
        said = _launch(path, folder, results, ranks, until)
        after = _read(results)
        late = until is not None and time.monotonic() >= until
        if any(c.key not in after for c in wanted) and not late:
            now = results.with_suffix(".now").read_text()
            assert now not in before or after != before, said
            results.write_text(json.dumps({**after, now: {"error": f"the processes ended: {said[-300:]}"}}, indent=1))
    found = _read(results)
    return {c.key: found[c.key] for c in wanted if c.key in found}


def _read(results: Path) -> dict[str, Any]:
    return json.loads(results.read_text()) if results.exists() else {}


def _launch(cells: Path, folder: Path, results: Path, ranks: int, until: float | None) -> str:
    """Starts the ranks and waits; ends them when nothing has come for a long time. What they said."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [
        sys.executable,
        *launcher,
        str(Path(__file__).with_name("rank.py")),
        str(folder),
        str(cells),
        str(results),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}
    log = results.with_suffix(".log")
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
        seen, since = 0.0, time.monotonic()
        while process.poll() is None:
            time.sleep(0.5)
            now = results.stat().st_mtime if results.exists() else 0.0
            seen, since = (seen, since) if now == seen else (now, time.monotonic())
            if time.monotonic() - since > _STALLED_SECONDS or (until is not None and time.monotonic() > until):
                process.terminate()
                process.wait()
    return next(
        (x for x in reversed(log.read_text("utf-8", "replace").splitlines()) if "rror" in x or "what()" in x), ""
    )


def verdict(cell: Cell, found: Mapping[str, Any], alone: Mapping[str, Any]) -> tuple[str, str]:
    """`works`, `fails` or `wrong`, and what was seen."""
    if "error" in found:
        return "fails", str(found["error"])
    if "error" in alone:
        return "fails", f"in one process: {alone['error']}"
    shared = SHARINGS[cell.sharing]
    kind = {"z": "DEEPSPEED", "f": "FSDP", "d": "MULTI_CPU"}.get((shared.get("sharding") or " ")[0], "NO")
    if found["type"] != kind:
        return "wrong", f"it ran as {found['type']}"
    curve = max(abs(a - b) / abs(b) for a, b in zip(found["losses"], alone["losses"], strict=True))
    if curve > NEAR_CURVE:
        return "wrong", f"losses {curve:.1e} apart"
    if found["reopened"] > NEAR_ANSWERS:
        return "wrong", f"reopened, the answers are {found['reopened']:.1e} apart"
    if found["moved"] < MOVED:
        return "wrong", f"nothing was learnt ({found['moved']:.1e})"
    divided = (shared.get("sharding") or "") in ("zero3", "fsdp")
    if divided and cell.quantization != "int8" and found["share"] > 0.6:
        return "wrong", f"a rank holds {found['share']:.0%} of the weights"
    return "works", ""
