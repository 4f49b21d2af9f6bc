"""The page of what works with what, written from the results of the last whole run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zoo
from matrix.cells import METHODS, PAIRS, REASONS, Cell, every_cell, refusal
from tunekit.task import TASKS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "matrix.json"
PAGE = ROOT / "docs" / "matrix.md"

_HEAD = """# What works with what

Each method on each architecture with each task that transformers has an auto class for, with activation checkpointing off
and on. `make matrix` runs every cell on tiny models from a plain `transformers.Trainer` and writes this page. A cell works
when the loss on eight rows falls well below its start; exactly the declared parameters, the head among them, have gradients
and change, and nothing else does; saved and loaded into a fresh base it answers the same to 1e-5, as many answers as the
base gives; language models generate what their logits say; what merges answers the same merged; and checkpointing leaves
the gradients as they are. Everything here ran on a CPU; paths that only a GPU has (flash attention, fused kernels) are
modelled, not measured. `p-tuning-2` is P-tuning with an LSTM in place of the perceptron.
"""


def excluded() -> dict[str, tuple[str, str]]:
    """Code and reason by cell, `on` and `off` apart, of every cell that is refused before anything is loaded."""
    found = {}
    for cell in every_cell():
        for checkpoints in (False, True):
            if (finding := refusal(cell, checkpoints)) is not None:
                found[f"{cell.key} {'on' if checkpoints else 'off'}"] = (finding.code, finding.fix)
    return found


def page(results: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    refused = excluded()
    parts = [_HEAD, f"Run with {versions}.\n", _summary(results), _exclusions(refused)]
    parts += [_grid(results, refused, task.name) for task in TASKS]
    parts.append(_failures(results))
    return "\n".join(parts)


def _statuses(half: Mapping[str, Any], method: str) -> Counter[str]:
    cells = [half[c.key] for c in every_cell() if c.method == method and c.key in half]
    return Counter(status for cell in cells for status, *_ in (cell["off"], cell["on"]))


def _summary(results: Mapping[str, Any]) -> str:
    rows = [
        "## In figures\n",
        "| method | cells | work | excluded | fail | plain PEFT: work | raise | wrong in silence |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    ours, theirs = Counter[str](), Counter[str]()
    for method in METHODS:
        a, b = _statuses(results["cells"], method), _statuses(results["peft"], method)
        ours, theirs = ours + a, theirs + b
        rows.append(f"| {method} | {_row(a)} | {_peft_row(b)} |")
    rows.append(f"| **all** | {_row(ours)} | {_peft_row(theirs)} |")
    able = sum(ours.values()) - ours["refused"]
    share = f"{100 * ours['works'] / able:.1f} % of the cells that are not excluded work; "
    share += f"{100 * ours['refused'] / sum(ours.values()):.1f} % of all are excluded."
    if theirs:
        share += f" Plain PEFT, where it has the method: {100 * theirs['works'] / sum(theirs.values()):.1f} % of its cells work."
    took = sum(results.get("cpu_seconds", {}).values())
    share += f" Our half took {took / 60:.1f} minutes of one core." if took else ""
    return "\n".join(rows) + f"\n\n{share}\n"


def _row(counts: Counter[str]) -> str:
    failing = counts["fails"] + counts["wrong"]
    return f"{sum(counts.values())} | {counts['works']} | {counts['refused']} | {failing}"


def _peft_row(counts: Counter[str]) -> str:
    return f"{counts['works']} | {counts['fails']} | {counts['wrong']}" if counts else "has it not | | "


def _exclusions(refused: Mapping[str, tuple[str, str]]) -> str:
    """The closed list of reasons, each with what it holds for and the way out."""
    rows = ["## Excluded, and why\n", "| code | cells | method | architectures | instead |", "|---|--:|---|---|---|"]
    groups: dict[tuple[str, str], list[str]] = {}
    for key, (code, _) in refused.items():
        method, architecture, *_rest = key.split(" ")
        about = "every method" if code == "architecture-no-checkpointing" else method
        groups.setdefault((code, about), []).append(architecture)
    for (code, about), where in sorted(groups.items()):
        fix = next(f for k, (c, f) in refused.items() if c == code and about in (k.split(" ")[0], "every method"))
        rows.append(f"| `{code}` | {len(where)} | {about} | {', '.join(dict.fromkeys(where))} | {fix} |")
    rest = sorted(code for code in REASONS if not any(code == found for found, _ in groups))
    rows += [
        "",
        "On architectures that are not in these tables a method may be refused for these reasons too, and for no other:",
    ]
    rows += ["", *(f"- `{code}`: {REASONS[code]}" for code in rest)]
    return "\n".join(rows) + "\n"


_MARKS = {"works": "yes", "refused": "-", "fails": "**no**", "wrong": "**no**"}


def _grid(results: Mapping[str, Any], refused: Mapping[str, tuple[str, str]], task: str) -> str:
    architectures = [a for a in zoo.ARCHITECTURES if (a, task) in PAIRS]
    rows = [f"## {task}\n", f"| method | {' | '.join(architectures)} |", f"|---|{'---|' * len(architectures)}"]
    for method in METHODS:
        cells = [results["cells"].get(Cell(method=method, architecture=a, task=task).key) for a in architectures]
        rows.append(f"| {method} | {' | '.join(_mark(cell) for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _mark(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "?"
    off, on = (_MARKS[cell[half][0]] for half in ("off", "on"))
    return off if off == on else f"{off}, checkpointing {on}"


def _failures(results: Mapping[str, Any]) -> str:
    rows = []
    for key, cell in results["cells"].items():
        for half in ("off", "on"):
            status, code, seen = cell[half]
            if status in ("fails", "wrong"):
                rows.append(f"- `{key}`, checkpointing {half}: {code}: {seen}")
    return "## What does not work\n\n" + ("\n".join(rows) if rows else "Nothing that is not excluded above.") + "\n"


def read() -> dict[str, Any]:
    """The results of the last whole run."""
    return json.loads(RESULTS.read_text())
