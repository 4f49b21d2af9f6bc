"""`tunekit estimate`: predicted memory and time of a plan."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tunekit.cli.session import Answer, AsJson, Verbose, command, console_text, flowed
from tunekit.notebook import gib, long_or_short


@command
def answer(
    plan: Annotated[str, typer.Argument(help="A plan file.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the plan to change.")
    ] = None,
    hardware: Annotated[str, typer.Option(help='auto, cpu, H100, "4x24GB", "2x8xH200".')] = "auto",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Predict a plan's peak memory by part and its duration, from one step traced without weights.

    [dim]Example:[/dim] tunekit estimate plan.yaml per_device_train_batch_size=32 --hardware 24GB
    """
    from tunekit.cli.values import read_plan

    read = read_plan(plan, changes or ())
    import tunekit
    from tunekit.advisor.observe.hardware import hardware as read_hardware
    from tunekit.advisor.observe.model import model_facts
    from tunekit.advisor.simulate.savings import savings
    from tunekit.assemble import plan_facts

    device = read_hardware(hardware)
    facts = plan_facts(read)
    memory = tunekit.estimate_memory(read, device, facts)
    duration = tunekit.estimate_time(read, device, facts)
    saved = savings(read, device, facts, model_facts(read.model, read.revision))
    data = {
        "kind": "tunekit-estimate",
        "plan": read.to_dict(),
        "memory": memory.to_dict(),
        "duration": duration.to_dict(),
        "fits": memory.interval[1] <= device.memory_bytes,
        "savings": [{"changes": dict(s.changes), "saved_bytes": s.saved_bytes} for s in saved],
    }
    return Answer(data=data, text=lambda: _text(memory, duration, device, saved))


def _text(memory: Any, duration: Any, device: Any, saved: Any) -> str:
    from rich.table import Table

    table = Table(box=None)
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for part, size in sorted(memory.parts.items(), key=lambda item: -item[1]):
        table.add_row(part, gib(size))
    table.add_row("sum of tensors", gib(memory.allocated_bytes), style="bold")
    table.add_row("reserved by the allocator", gib(memory.reserved_bytes))
    low, high = memory.interval
    table.add_row("used on the device", f"{gib(memory.device_bytes)}", style="bold")
    worth = [s for s in saved if gib(s.saved_bytes) != gib(0)]
    reasons = dict.fromkeys((*memory.reasons, *duration.reasons))
    fits = "fits" if high <= device.memory_bytes else "does not surely fit"
    lines = [
        f"between {gib(low)} and {gib(high)} GiB of {gib(device.memory_bytes)} GiB: {fits}",
        f"{duration.num_steps:,} steps of {duration.step_seconds:.3g} s: {long_or_short(duration.total_seconds)}"
        f" ({long_or_short(duration.interval[0])} to {long_or_short(duration.interval[1])})",
        *(["what would save most:"] if worth else []),
        *(
            f"- {' '.join(f'{k}={_word(v)}' for k, v in s.changes.items())} saves {gib(s.saved_bytes)} GiB"
            for s in worth
        ),
        *(["what it rests on:", *(f"- {reason}" for reason in reasons)] if reasons else []),
    ]
    title = f"Peak memory on {device.name}, in the {memory.moment}"
    return "\n".join((title, "", console_text(table), "", flowed("\n".join(lines))))


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
