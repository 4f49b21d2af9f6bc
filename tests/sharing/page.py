"""The page of what combines with what on several ranks, written from the results of the last whole run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sharing.cells import METHODS, OBJECTIVES, QUANTIZATIONS, SHARINGS, Cell, every_cell
from tunekit.finding import Finding

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "matrix_sharding.json"
PAGE = ROOT / "docs" / "matrix-sharding.md"
_HEAD = """# What combines with what on several processes

Each method with each quantisation, each way to share the work, activation checkpointing and each objective, on a tiny Llama and
two CPU ranks (gloo). `make matrix` runs every cell that is not refused and writes this page. A cell works when its losses over six
steps are those of one process at the same effective batch to 1e-4, something was learnt, the folder that two ranks saved reopens in
one process and answers the same to 1e-5, the run really was DDP, DeepSpeed or FSDP, and under ZeRO-3 and FSDP a rank holds its part
of the weights only. fp4, which is nf4 with sixteen other values, is tried with LoRA. [The other page](matrix.md) has every architecture and task in one process. GPUs are not measured here.
In the tables a cell has two marks, without and with checkpointing: `yes` works, `no` is refused, `·` has not been run yet.
"""


_MARKS = {"works": "yes", "refused": "no", "fails": "FAILS", "wrong": "WRONG", "not run": "·"}


def page(results: Mapping[str, Any], refused: Mapping[str, Finding]) -> str:
    """The page as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [_HEAD, f"Run with {versions}.\n", _summary(results["cells"], refused), _reasons(refused)]
    for quantization in QUANTIZATIONS:
        for objective in OBJECTIVES:
            parts.append(_grid(results["cells"], refused, quantization, objective))
    return "\n".join([*parts, _failures(results["cells"])]).rstrip() + "\n"


def status(cells: Mapping[str, Any], refused: Mapping[str, Finding], cell: Cell) -> str:
    if cell.key in refused:
        return "refused"
    return cells[cell.key][0] if cell.key in cells else "not run"


def _summary(cells: Mapping[str, Any], refused: Mapping[str, Finding]) -> str:
    order = ("works", "refused", "fails", "wrong", "not run")
    rows = ["## In figures\n", f"| shared by | cells | {' | '.join(order)} |", f"|---|--:|{'--:|' * len(order)}"]
    total = Counter[str]()
    for sharing in SHARINGS:
        counts = Counter(status(cells, refused, c) for c in every_cell() if c.sharing == sharing)
        total += counts
        rows.append(f"| {sharing} | {sum(counts.values())} | {' | '.join(str(counts[s]) for s in order)} |")
    rows.append(f"| **all** | {sum(total.values())} | {' | '.join(str(total[s]) for s in order)} |")
    return "\n".join(rows) + "\n"


def _reasons(refused: Mapping[str, Finding]) -> str:
    """Each code once, with the reason and the way out of one cell that has it."""
    rows = ["## Refused, and why\n", "| code | cells | for example | why | instead |", "|---|--:|---|---|---|"]
    for code in sorted({f.code for f in refused.values()}):
        keys = [k for k, f in refused.items() if f.code == code]
        found = refused[keys[0]]
        rows.append(f"| {code} | {len(keys)} | {found.seen} | {found.why} | {found.fix} |")
    return "\n".join(rows) + "\n"


def _grid(cells: Mapping[str, Any], refused: Mapping[str, Finding], quantization: str | None, objective: str) -> str:
    """Methods by sharing; a cell is tried without and with checkpointing."""
    rows = [
        f"## {quantization or 'Not quantised'}, {objective}\n",
        f"| method | {' | '.join(SHARINGS)} |", f"|---|{'---|' * len(SHARINGS)}",
    ]  # fmt: skip
    for method in METHODS if quantization != "fp4" else ("lora",):
        marks = []
        for sharing in SHARINGS:
            both = [
                status(cells, refused, Cell(method=method, quantization=quantization, sharing=sharing, checkpoints=on, objective=objective))
                for on in (False, True)
            ]  # fmt: skip
            marks.append(" ".join(_MARKS[told] for told in both))
        rows.append(f"| {method} | {' | '.join(marks)} |")
    return "\n".join(rows) + "\n"


def _failures(cells: Mapping[str, Any]) -> str:
    found = [(key, *told) for key, told in cells.items() if told[0] not in ("works", "refused")]
    if not found:
        return ""
    rows = ["## What does not work\n", "| cell | | seen |", "|---|---|---|"]
    return "\n".join([*rows, *(f"| {key} | {told} | {seen} |".replace("\n", " ") for key, told, seen in found)]) + "\n"
