"""What `tunekit launch` writes beside a plan, and the command that starts its processes from there."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunekit.message_sizes import MessageSizes
    from tunekit.plan import Plan

_CPU_DEFAULTS = {"OMP_NUM_THREADS": "1"}
_PORT = 29500


def write_files(plan: Plan, folder: Path, *, cpu: bool, sizes: MessageSizes | None = None) -> list[Path]:
    """accelerate's YAML and, for ZeRO, DeepSpeed's JSON.

    Args:
        plan: The plan.
        folder: Where to; made where it does not exist.
        cpu: Whether the processes stay on the CPU.
        sizes: How much is sent at once, where the cards are known.
    """
    import yaml

    from tunekit.sharding import accelerate_config, deepspeed_config, zero_stage

    folder.mkdir(exist_ok=True)
    file = folder / "deepspeed.json"
    if zero_stage(plan) is None:
        config = accelerate_config(plan, cpu=cpu)
        return [write(folder / "accelerate.yaml", yaml.safe_dump(config, sort_keys=False))]
    config = accelerate_config(plan, cpu=cpu, deepspeed_file=str(file))
    return [
        write(file, json.dumps(deepspeed_config(plan, sizes), indent=2) + "\n"),
        write(folder / "accelerate.yaml", yaml.safe_dump(config, sort_keys=False)),
    ]


def write(path: Path, text: str) -> Path:
    """A file, whole or not at all."""
    from tunekit.files import write_text

    write_text(path, text)
    return path


def environment_of(plan: Plan, cpu: bool) -> dict[str, str]:
    """Variables that the processes need."""
    from tunekit.sharding import launch_environment

    needed = launch_environment(plan, cpu=cpu)
    # Each rank would otherwise take every core; accelerate says so at every start.
    return {**needed, **({} if "OMP_NUM_THREADS" in os.environ or not needed else _CPU_DEFAULTS)}


def command_of(
    plan: Plan, folder: Path, train: Sequence[str], rank: int, address: str | None, port: int | None
) -> list[str]:
    """What starts the processes of this machine."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.yaml")]
    if plan.num_machines > 1:
        launcher += ["--machine_rank", str(rank), "--main_process_ip", address or "ADDRESS_OF_MACHINE_0"]
    if plan.num_processes > 1:
        launcher += ["--main_process_port", str(port if port is not None else _PORT if plan.num_machines > 1 else 0)]
    return [*launcher, "-m", "tunekit", "train", *train]


def slurm_script(
    plan: Plan, environment: Mapping[str, str], folder: Path, train: Sequence[str], port: int | None
) -> str:
    """A script for sbatch: one task a machine, which starts that machine's processes.

    Args:
        plan: The plan.
        environment: Variables that the processes need.
        folder: Where the launch files lie, on a disk that all machines see.
        train: What `tunekit train` is called with.
        port: Port of machine 0; None: 29500.
    """
    here = plan.num_processes // plan.num_machines
    launcher = [
        "accelerate",
        "launch",
        "--config_file",
        str(folder / "accelerate.yaml"),
        "--main_process_port",
        str(port or _PORT),
    ]
    rest = shlex.join([*launcher, "-m", "tunekit", "train", *train])
    head, tail = rest.split(" -m tunekit", 1)
    inner = f"{head} --machine_rank $SLURM_NODEID --main_process_ip $MAIN -m tunekit{tail}"
    gpus = [] if environment.keys() & {"ACCELERATE_USE_CPU", "DS_ACCELERATOR"} else [f"#SBATCH --gpus-per-node={here}"]
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={folder.stem}",
        f"#SBATCH --nodes={plan.num_machines}",
        "#SBATCH --ntasks-per-node=1",
        *gpus,
        f"#SBATCH --output={folder / 'slurm-%j.out'}",
        "",
        f"cd {shlex.quote(os.getcwd())}",
        *(f"export {name}={value}" for name, value in environment.items()),
        'export MAIN="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
        f"srun bash -c {shlex.quote(inner)}",
        "",
    ]
    return "\n".join(lines)  # fmt: skip
