"""Advice as text: a ranked table that reads well from 80 columns up, in colour on a terminal and plain elsewhere."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tunekit.contracts import Method
from tunekit.finding import Finding
from tunekit.plan import Plan

if TYPE_CHECKING:
    from tunekit.advice import Advice, Entry

GIB = 2**30
_WIDTH = (80, 120)
"""Narrower than this nothing fits a line; wider lines are hard to read."""
_INDENT = "     "
_SIGNS = {"favours": "+", "disfavours": "-", "error": "x", "warning": "!", "note": "i"}
_STYLES = {"favours": "32", "disfavours": "33", "error": "31", "warning": "33", "note": "2"}
TIED = "= tied: no evidence tells these apart; ordered by predicted time, memory and size."
Line = tuple[str, str]
"""A line and its ANSI style, empty for plain."""


def text(advice: Advice, width: int | None = None, colour: bool | None = None) -> str:
    """The advice as lines of text.

    Args:
        advice: What to print.
        width: Columns; None takes the terminal's, at least 80 and at most 120, and 100 where there is none.
        colour: Whether to use ANSI styles; None: on a terminal, unless `NO_COLOR` is set.
    """
    terminal = sys.stdout.isatty()
    if width is None:
        width = shutil.get_terminal_size((100, 24)).columns if terminal or "COLUMNS" in os.environ else 100
    if colour is None:
        colour = terminal and not os.environ.get("NO_COLOR")
    lines = list(_lines(advice, min(max(width, _WIDTH[0]), _WIDTH[1])))
    return "\n".join(
        f"\x1b[{style}m{line}\x1b[0m" if colour and style and line else line.rstrip() for line, style in lines
    )


def _lines(advice: Advice, width: int) -> Iterator[Line]:
    yield from _question(advice, width)
    yield from _ranked(advice, width)
    yield from _rejected(advice, width)
    yield from _findings(advice.findings, width)
    if advice.version:
        yield "", ""
        yield advice.version, "2"


# ---------------------------------------------------------------------------------------------- the question
def _question(advice: Advice, width: int) -> Iterator[Line]:
    yield headline(advice), "1"
    for line in textwrap.wrap(question(advice), width):
        yield line, "2"
    yield "", ""


def headline(advice: Advice) -> str:
    """What is asked, in one line."""
    w = advice.workload
    nameless = not w.model.has_weights and w.model.name.endswith("Config")
    return f"How to fine-tune {f'a {w.model.model_type} model' if nameless else short_name(w.model.name)} for {w.task}"


def question(advice: Advice) -> str:
    """The facts that the advice rests on, in one sentence."""
    w = advice.workload
    model = f"{count(w.model.num_parameters)} parameters ({w.model.side}, {w.model.num_layers} layers)"
    rows = f"{w.data.num_examples:,} rows"
    if w.data.num_labels and w.data.problem_type != "regression":
        rows += f" of {w.data.num_labels} classes"
    if w.data.lengths:
        rows += f", {w.data.mean_tokens:.0f} tokens on average and {w.data.max_tokens:,} at most"
    return f"{model}; {rows}; {hardware_text(advice)}; goal: {w.goal}."


def hardware_text(advice: Advice) -> str:
    """The devices, with the memory of each."""
    h = advice.workload.hardware
    memory = f"{h.memory_bytes / GIB:.0f} GiB"
    counted = f"{h.num_machines} x " * (h.num_machines > 1) + f"{h.num_devices} x " * (h.num_devices > 1)
    each = " each" if h.total_devices > 1 else " free" if h.device == "cpu" else ""
    return f"{counted}{h.name}" + (
        "" if h.name.lower().replace(" ", "").startswith(memory[:-4] + "g") else f" ({memory}{each})"
    )


# ---------------------------------------------------------------------------------------------- what is ranked
def _ranked(advice: Advice, width: int) -> Iterator[Line]:
    if not advice.ranked:
        yield "Nothing fits.", "1;31"
        return
    cells = [_cells(advice, i) for i in range(len(advice.ranked))]
    head = ("#", "method", "trains", "memory, GiB", "time")
    widths = [max(len(row[i]) for row in (head, *cells)) for i in range(5)]
    room = width - len(_row(("",) * 5, [0, 0, *widths[2:]]))
    widths[1] = min(room, widths[1] + 12)
    yield _row(head, widths), "2"
    yield "-" * len(_row(("",) * 5, widths)), "2"
    for entry, row in zip(advice.ranked, cells, strict=True):
        whole = len(row[1]) <= widths[1]
        name = row[1] if whole else entry.plan.method.title[: widths[1]]
        yield _row((row[0], name, *row[2:]), widths), "1"
        yield from _wrapped(settings(entry.plan) if whole else f"{row[1]}: {settings(entry.plan)}", width, "2")
        yield from _reason(entry, width)
    if len({e.tie for e in advice.ranked}) < len(advice.ranked):
        yield "", ""
        for line in textwrap.wrap(TIED, width):
            yield line, "2"


def _cells(advice: Advice, index: int) -> tuple[str, ...]:
    entry = advice.ranked[index]
    return (rank(advice, index), method_text(entry.plan), trained(entry), memory(entry), duration(entry))


def _row(cells: tuple[str, ...], widths: list[int]) -> str:
    number, *rest = (cell.ljust(w) for cell, w in zip(cells, widths, strict=True))
    return f"{number.rjust(3)}  " + "  ".join(rest)


def rank(advice: Advice, index: int) -> str:
    """The place of an entry: `1`, or `1=` for those that tie, as in sports."""
    ties = [e.tie for e in advice.ranked]
    place = ties.index(ties[index]) + 1
    return f"{place}=" if ties.count(ties[index]) > 1 else str(place)


def _reason(entry: Entry, width: int) -> Iterator[Line]:
    if not entry.moving:
        yield from _wrapped("nothing speaks for or against it", width, "2")
        return
    first = entry.moving[0]
    yield from _signed(first, width)
    opposite = next((f for f in entry.moving if f.severity != first.severity), None)
    if opposite is not None:
        yield from _signed(opposite, width)


def _signed(finding: Finding, width: int) -> Iterator[Line]:
    yield from _wrapped(f"{_SIGNS[finding.severity]} {finding.seen}", width, _STYLES[finding.severity], hang="  ")


def _wrapped(line: str, width: int, style: str, hang: str = "") -> Iterator[Line]:
    for part in textwrap.wrap(line, width, initial_indent=_INDENT, subsequent_indent=_INDENT + hang):
        yield part, style


# ---------------------------------------------------------------------------------------------- what is not
def _rejected(advice: Advice, width: int) -> Iterator[Line]:
    if not advice.rejected:
        return
    yield "", ""
    yield "Not these", "1"
    names = [method_text(e.plan) for e in advice.rejected]
    column = min(max(map(len, names)), width // 2 - 4)
    for name, entry in zip(names, advice.rejected, strict=True):
        fault = entry.moving[0]
        lead = f"  x  {(name if len(name) <= column else entry.plan.method.title[:column]).ljust(column)}  "
        body = f"{fault.seen}" + (f": {fault.why}" if fault.why and fault.code != "fits-memory" else "")
        for line in textwrap.wrap(body, width, initial_indent=lead, subsequent_indent=" " * len(lead)):
            yield line, ""


def _findings(findings: Iterable[Finding], width: int) -> Iterator[Line]:
    for i, finding in enumerate(findings):
        if i == 0:
            yield "", ""
            yield "Worth knowing", "1"
        body = (
            finding.seen
            + (f": {finding.why}" if finding.why else "")
            + (f". {_capital(finding.fix)}" if finding.fix else "")
        )
        lead = f"  {_SIGNS[finding.severity]}  "
        for line in textwrap.wrap(f"{body}.", width, initial_indent=lead, subsequent_indent=_INDENT):
            yield line, _STYLES[finding.severity] if finding.severity in ("warning", "error") else ""


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:].rstrip(".")


# ---------------------------------------------------------------------------------------------- two side by side
def comparison(advice: Advice, first: Entry, second: Entry) -> str:
    """Two entries side by side: place, prediction, what speaks for and against each, and what decided."""
    lines = [_decision(advice, first, second)]
    for entry in (first, second):
        lines += ["", f"{method_text(entry.plan)}: {_place(advice, entry)}"]
        lines.append(f"{_INDENT}{settings(entry.plan)}")
        if entry.memory is not None:
            lines.append(f"{_INDENT}trains {trained(entry)}, {memory(entry)} GiB, {duration(entry)}")
        for f in entry.moving:
            points = f" ({f.points:+.1f} points)" if f.points else ""
            lines.append(f"{_INDENT}{_SIGNS[f.severity]} {f.seen}{points}" + (f": {f.why}" if f.why else ""))
            if f.source:
                lines.append(f"{_INDENT}  [{f.code}] {f.source}")
    return "\n".join(lines)


def _place(advice: Advice, entry: Entry) -> str:
    if entry not in advice.ranked:
        return "rejected"
    return f"place {rank(advice, advice.ranked.index(entry))} of {len(advice.ranked)}, score {entry.score:+.1f}"


def _decision(advice: Advice, first: Entry, second: Entry) -> str:
    """What put one above the other, in one sentence."""
    a, b = method_text(first.plan), method_text(second.plan)
    out = [e for e in (first, second) if e not in advice.ranked]
    if len(out) == 2:
        return f"{a} and {b} are both rejected."
    if out:
        other = a if out[0] is second else b
        return f"{other} is ranked; {method_text(out[0].plan)} is not: {'; '.join(out[0].reasons[:1])}."
    if first.tie == second.tie:
        return f"{a} and {b} tie: no evidence tells them apart, so predicted time, memory and size order them."
    better, worse = (first, second) if first.tie < second.tie else (second, first)
    return f"{method_text(better.plan)} is above {method_text(worse.plan)} by {better.score - worse.score:.1f} points."


# ---------------------------------------------------------------------------------------------- words and figures
_SHOWN = {
    "r": "r={}",
    "last_layers": "last {} layers",
    "num_virtual_tokens": "{} tokens",
    "reduction_factor": "reduction {}",
    "variant": "{}",
    "encoder": "{}",
}
"""Settings of a method that are always printed, and how; others only where they differ from their default."""
_HIDDEN = ("lora_alpha", "lora_dropout")
"""Settings that are printed with the method's full configuration only."""


def method_text(plan: Plan) -> str:
    """A method's name with the settings that make it what it is, such as `LoRA r=16, 4-bit base`."""
    name = f"{plan.method.title} {', '.join(_method_settings(plan.method))}".strip()
    if plan.objective is not None and plan.objective.slug != "supervised":
        name = f"{plan.objective.title}: {name}"
    bits = {"nf4": "4-bit", "fp4": "4-bit", "int8": "8-bit"}
    return name + (f", {bits[plan.quantization]} base" if plan.quantization else "")


def _method_settings(method: Method) -> Iterator[str]:
    settings: Any = method
    defaults = {f.name: f.default for f in dataclasses.fields(settings)}
    for name, default in defaults.items():
        value = getattr(method, name)
        if name in _HIDDEN or value is None or (name not in _SHOWN and value == default):
            continue
        if name in _SHOWN:
            yield _SHOWN[name].format(value)
        elif isinstance(value, bool):
            yield name.removeprefix("use_") if value else f"no {name.removeprefix('use_')}"
        elif isinstance(value, str | int | float):
            yield f"{name}={value:g}" if isinstance(value, int | float) else value


def settings(plan: Plan) -> str:
    """The plan's own knobs in one line: learning rate, length of the run, batch, precision, sharding."""
    micro, steps, processes = plan.per_device_train_batch_size, plan.gradient_accumulation_steps, plan.num_processes
    factors = [
        str(micro),
        *(f"{steps} steps" for _ in range(steps > 1)),
        *(f"{processes} devices" for _ in range(processes > 1)),
    ]
    split = f" ({' x '.join(factors)})" if len(factors) > 1 else ""
    parts = [
        f"learning rate {rate(plan.learning_rate)}",
        f"{plan.max_steps:,} steps"
        if plan.max_steps
        else f"{plan.num_train_epochs:g} epoch{'s' * (plan.num_train_epochs != 1)}",
        f"batch {plan.effective_batch_size}{split}",
        f"{plan.max_length:,} tokens" if plan.max_length else "",
        _precision(plan),
        plan.quantization or "",
        "checkpointing" if plan.activation_checkpointing else "",
        plan.sharding or "",
        f"{plan.offload} on {plan.offload_to}" if plan.offload else "",
        plan.optim if "8bit" in plan.optim or not plan.optim.startswith("adamw_torch") else "",
    ]
    return ", ".join(p for p in parts if p)


def _precision(plan: Plan) -> str:
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    if plan.mixed_precision is None:
        return f"pure {names[plan.dtype]}" if plan.dtype != "float32" else "fp32"
    return plan.mixed_precision


def trained(entry: Entry) -> str:
    """How many parameters learn, and their share of the model."""
    if entry.memory is None or not entry.memory.total_parameters:
        return "?"
    share = 100 * entry.memory.trainable_parameters / entry.memory.total_parameters
    percent = f"{share:.0f}" if share >= 9.95 else f"{share:.2g}" if share >= 0.001 else "<0.001"
    return f"{count(entry.memory.trainable_parameters)} ({percent} %)"


def memory(entry: Entry) -> str:
    """Predicted peak of one device in GiB, with its interval."""
    if entry.memory is None:
        return "?"
    low, high = (n / GIB for n in entry.memory.interval)
    return f"{entry.memory.device_bytes / GIB:.1f} ({low:.1f}-{high:.1f})"


def duration(entry: Entry) -> str:
    """Predicted length of the run, with its interval in the same unit."""
    if entry.duration is None:
        return "?"
    seconds = entry.duration.total_seconds
    from_seconds = {"d": 2 * 86400, "h": 5400, "min": 90, "s": 0}
    unit = next(u for u, least in from_seconds.items() if seconds >= least)
    one = {"d": 86400, "h": 3600, "min": 60, "s": 1}[unit]
    low, high = (n / one for n in entry.duration.interval)
    return f"{_figure(seconds / one)} {unit} ({_figure(low)}-{_figure(high)})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def count(number: int) -> str:
    """A number of parameters as people write it.

    Example:
        >>> count(8_030_261_248), count(41_943_040), count(20_500), count(384)
        ('8.03 B', '41.9 M', '20.5 K', '384')
    """
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return str(number)


def rate(value: float) -> str:
    """A learning rate as people write it.

    Example:
        >>> rate(2e-4), rate(0.00015), rate(0.3)
        ('2e-4', '1.5e-4', '0.3')
    """
    if value >= 0.01:
        return f"{value:g}"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def short_name(name: str) -> str:
    """A model's name without the folders above it; a hub id stays whole.

    Example:
        >>> short_name("owner/name"), short_name("/home/me/models/llama"), short_name("./runs/bert/model/")
        ('owner/name', 'llama', 'bert/model')
    """
    parts = [p for p in name.split("/") if p not in ("", ".", "..", "~")]
    local = name.startswith((".", "/", "~")) or len(parts) > 2
    generic = len(parts) > 1 and parts[-1] in ("model", "output", "checkpoint", "merged", "final")
    return "/".join(parts[-2:] if generic else parts[-1:]) if local and parts else name
