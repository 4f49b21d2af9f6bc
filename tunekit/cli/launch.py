"""`tunekit launch`: start the processes of a plan."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekit.cli.launch_files import command_of, environment_of, slurm_script, write, write_files
from tunekit.cli.session import Answer, AsJson, Verbose, command, say

if TYPE_CHECKING:
    from tunekit.message_sizes import MessageSizes
    from tunekit.plan import Plan


@command
def answer(
    plan: Annotated[str, typer.Argument(help="A plan file with `data`.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the plan to change.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the files, print the command, start nothing.")
    ] = False,
    num_machines: Annotated[
        int | None, typer.Option(min=1, help="Machines that share the run; instead of the plan's.")
    ] = None,
    machine_rank: Annotated[int, typer.Option(min=0, help="Which of them this one is.")] = 0,
    main_process_ip: Annotated[str | None, typer.Option(help="Address of machine 0.")] = None,
    main_process_port: Annotated[
        int | None, typer.Option(help="Port there; by default a free one, 29500 over machines.")
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Write a Slurm script too, and start nothing: hand it to sbatch.")
    ] = False,
    hardware: Annotated[
        str | None, typer.Option(help="Cards to size the messages for, such as `2x8xH100`; says the predicted memory.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into an output folder that is not empty.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> Answer:
    """Write the launch files of a plan beside it, say the exact command, and run it.

    The files lie in a folder named after the plan (`plan.launch/`) and are written anew each time. Without a GPU the
    processes run on the CPU. Over several machines the command is started once on each.

    [dim]Example:[/dim] tunekit launch plan.yaml --dry-run
    """  # fmt: skip
    from tunekit.advisor.observe.hardware import cuda_here
    from tunekit.cli.values import goes_on, read_plan

    asked = [*(changes or ()), *([f"num_machines={num_machines}"] if num_machines is not None else [])]
    read = read_plan(plan, asked)
    starts = not (dry_run or slurm)
    _check(read, machine_rank, main_process_ip, overwrite=overwrite or resume, starts=starts, slurm=slurm)
    # Another machine will run a script or a dry run's command; it is taken to have GPUs only if this one has.
    cpu = cuda_here() is None and hardware in (None, "cpu")
    flags = [
        *asked,
        *(["--overwrite"] if overwrite else []),
        *(["--resume"] if resume else []),
        *(["--verbose"] if verbose else []),
    ]
    folder, words = Path(plan).resolve().with_suffix(".launch"), [plan, *flags]
    environment = environment_of(read, cpu)
    start = command_of(read, folder, words, machine_rank, main_process_ip, main_process_port)
    sizes, predicted = _sized(read, hardware) if hardware is not None else (None, None)
    files = write_files(read, folder, cpu=cpu, sizes=sizes)
    if slurm:
        script = slurm_script(read, environment, folder, words, main_process_port)
        files.append(write(folder / "slurm.sh", script))
    line = shlex.join([*(f"{k}={v}" for k, v in environment.items()), *start])
    data = {
        "kind": "tunekit-launch",
        "files": [str(f) for f in files],
        "environment": environment,
        "command": start,
        "predicted": predicted,
        "exit": None,
    }
    said = [] if predicted is None else [_predicted_line(predicted)]
    told = "\n".join([*said, *(f"wrote {f}" for f in files), f"sbatch {files[-1]}" if slurm else line])
    if not starts:
        return Answer(data=data, text=lambda: told)
    say(told)
    try:
        code = _start(start, environment)
    except KeyboardInterrupt:
        ways = ("the traceback above is the launcher's", goes_on("launch", plan, asked, read.output_dir))
        raise KeyboardInterrupt(*filter(None, ways)) from None
    if code:
        typer.echo(f"error: {_ended(goes_on('launch', plan, asked, read.output_dir), code)}", err=True)
        raise typer.Exit(2 if code == 2 else 1)
    return Answer(data={**data, "exit": code})  # fmt: skip


def _ended(way_on: str, code: int) -> str:
    """What became of the run, and how it goes on. The launcher has ended the other processes of this machine."""
    said = f"a process of the run ended with exit code {code} and the others were ended; what it said stands above"
    return f"{said}; {way_on}" if code != 2 and way_on else said


def _check(plan: Plan, rank: int, address: str | None, *, overwrite: bool, starts: bool, slurm: bool) -> None:
    """What needs no torch; each process checks the rest before it loads anything."""
    from tunekit.admission import check_data, check_output, check_sharding
    from tunekit.errors import InvalidError, raise_all
    from tunekit.finding import error

    faults = []
    if rank >= plan.num_machines:
        faults.append(
            error(
                "launch-rank",
                f"--machine-rank {rank} of {plan.num_machines}",
                "machines are counted from 0",
                f"use 0 to {plan.num_machines - 1}",
            )
        )
    if starts and plan.num_machines > 1 and address is None:
        faults.append(
            error(
                "launch-address",
                f"{plan.num_machines} machines",
                "they must know where the first one is",
                "give `--main-process-ip`, or `--slurm`",
            )
        )
    raise_all(faults, InvalidError)
    check_data(plan)
    check_sharding(plan, starts=starts)
    if starts and rank == 0:
        check_output(plan, overwrite)  # fmt: skip


def _sized(plan: Plan, hardware: str) -> tuple[MessageSizes | None, dict[str, Any]]:
    """Sizes of messages for these cards, and what the simulator says of one."""
    from tunekit.advisor.observe.hardware import hardware as read_hardware
    from tunekit.advisor.observe.model import model_facts
    from tunekit.assemble import estimate_memory
    from tunekit.message_sizes import message_sizes
    from tunekit.sharding import zero_stage

    cards = read_hardware(hardware)
    memory = estimate_memory(plan, cards)
    facts = model_facts(plan.model, plan.revision)
    sizes = message_sizes(plan, facts, cards, memory) if zero_stage(plan) is not None else None
    return sizes, {"device_bytes": memory.device_bytes, "of_bytes": cards.memory_bytes, "card": cards.name}


def _predicted_line(predicted: Mapping[str, Any]) -> str:
    takes, has = predicted["device_bytes"] / 2**30, predicted["of_bytes"] / 2**30
    return f"predicted {takes:.1f} of {has:.1f} GiB a device{'' if takes <= has else ': it does not fit'}"


def _start(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the command in this process's place as far as its output goes; an interruption reaches the ranks too."""
    import subprocess

    process = subprocess.Popen(words, env={**os.environ, **environment})
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The terminal has sent it to the whole group; the launcher ends its ranks.
        process.wait()
        raise
