"""What stands before loading: a plan that cannot work here is refused before weights or rows are read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunekit.contracts import learnt_form
from tunekit.errors import InvalidError, MissingPackageError, OccupiedError, UnsupportedError, raise_all
from tunekit.finding import Finding, error
from tunekit.fsdp import SHARDINGS, forget, fsdp_arguments
from tunekit.plan import Plan
from tunekit.sharding import deepspeed_config, sharding_faults, zero_stage
from tunekit.task import Task


def admit(plan: Plan, *, overwrite: bool = False, loads: bool = True, has_rows: bool = False) -> None:
    """Every refusal that needs no weights and no rows.

    Args:
        plan: The plan.
        overwrite: Whether an output folder that holds something may be written into.
        loads: Whether `plan.model` will be loaded, so that its configuration can be asked.
        has_rows: Whether rows were handed in, so that the plan need not name them.

    Raises:
        TunekitError: what the checks below say.
    """
    check_world(plan)
    check_sharding(plan)
    check_output(plan, overwrite)
    if not has_rows:
        check_data(plan)
    if loads:
        check_supported(plan)


def check_world(plan: Plan) -> None:
    """Refuses a run whose processes are not those of the plan.

    Raises:
        UnsupportedError: `world-size`, naming the command that starts the right number; `world-devices`, with fewer GPUs
            than processes; `world-sharding`, where the launcher was told another form of sharding.
    """
    live = int(os.environ.get("WORLD_SIZE", "1"))
    faults = []
    if live != plan.num_processes:
        faults.append(
            error(
                "world-size", f"{live} running process{'es' if live > 1 else ''} with `num_processes: {plan.num_processes}`",
                "every process must know how many share the work",
                f"start `tunekit launch plan.yaml`, or `accelerate launch --num_processes {plan.num_processes} -m tunekit train plan.yaml`"
                if plan.num_processes > 1
                else f"set `num_processes: {live}` and `sharding: ddp`, or start one process",
            )
        )  # fmt: skip
    raise_all([*faults, *_launcher_faults(plan), *_device_faults(plan)], UnsupportedError)


def _device_faults(plan: Plan) -> list[Finding]:
    import torch

    local, here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if plan.num_processes == 1 or not torch.cuda.is_available() or local <= here:
        return []
    return [
        error(
            "world-devices", f"{local} processes on a machine with {here} GPU{'s' if here > 1 else ''}", "every process needs a GPU of its own",
            f"set `num_processes: {here * plan.num_machines}`, or use more machines",
        )
    ]  # fmt: skip


def _launcher_faults(plan: Plan) -> list[Finding]:
    """What `accelerate launch` was told of sharding, where it is not what the plan says."""
    told = _told()
    if told is None or told == (plan.sharding or "").removesuffix("-hybrid"):
        return []
    return [
        error(
            "world-sharding", f"a launcher told to use {told} with `sharding: {plan.sharding or 'null'}`", "the two must agree",
            f"start `tunekit launch plan.yaml`, or set `sharding: {told}`",
        )
    ]  # fmt: skip


def _told() -> str | None:
    """The form of sharding in the environment that accelerate makes; None where it leaves the choice open."""
    # Without the second accelerate has set the first itself, for an earlier run in this process.
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and "FSDP_VERSION" in os.environ:
        return "fsdp"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() != "true":
        return None
    # Without either accelerate has set it itself, for an earlier run in this process.
    stage: Any = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if file := os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        try:
            stage = json.loads(Path(file).read_text("utf-8"))["zero_optimization"]["stage"]
        except (OSError, ValueError, KeyError, TypeError):
            return f"DeepSpeed by {file}"
    return None if stage is None else f"zero{stage}"


def check_sharding(plan: Plan, *, starts: bool = True) -> None:
    """Refuses what cannot be shared so.

    Args:
        plan: The plan.
        starts: Whether the processes run on this machine, so that what they need must be here.

    Raises:
        UnsupportedError: what `tunekit.sharding.sharding_faults` says.
        MissingPackageError: `package-missing`, where DeepSpeed is needed and not installed; `offload-disk`, where it cannot
            use the disk.
    """
    raise_all(sharding_faults(plan), UnsupportedError)
    if zero_stage(plan) is None or not starts:
        return
    import importlib.util

    if importlib.util.find_spec("deepspeed") is None:
        fix = "pip install 'tunekit-hf[deepspeed]', or set `sharding: ddp`"
        raise MissingPackageError(error("package-missing", f"`sharding: {plan.sharding}`", "it needs DeepSpeed", fix))
    if plan.offload is not None and plan.offload_to != "cpu":
        _check_disk(plan)


def _check_disk(plan: Plan) -> None:
    import contextlib
    import io

    from tunekit.advisor.observe.hardware import cuda_here

    # Read once, when DeepSpeed is imported, and kept: the run that follows in this process works on the same.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda_here() else "cpu")
    with contextlib.redirect_stdout(io.StringIO()):
        from deepspeed.ops.op_builder import AsyncIOBuilder

        able = AsyncIOBuilder().is_compatible(verbose=False)
    if not able:
        fix = "install the system's libaio with its headers (`apt install libaio-dev`), or set `offload_to: cpu`"
        raise MissingPackageError(
            error("offload-disk", f"`offload_to: {plan.offload_to}`", "DeepSpeed reads and writes a disk by libaio, which is not here", fix)
        )  # fmt: skip


def check_data(plan: Plan) -> None:
    """Refuses a run without rows.

    Raises:
        InvalidError: `plan-data-missing`.
    """
    if plan.data is None:
        fix = "set `data: {path: ...}`, or pass `train_dataset`"
        raise InvalidError(error("plan-data-missing", "a plan without `data`", "there are no rows to train on", fix))


def check_supported(plan: Plan) -> None:
    """Refuses what cannot work with the plan's model, from its configuration: no weights are read.

    Raises:
        UnsupportedError: what the method or the objective refuses, `architecture-no-checkpointing`, `packing-architecture`.
    """
    from tunekit.advisor.observe.model import model_facts

    facts, task = model_facts(plan.model, plan.revision), Task.named(plan.task)
    refused = [
        plan.method.supports(
            facts, learnt_form(plan.objective, task, facts.side), plan.objective, plan.quantization, plan.sharding
        ),
        plan.objective.supports(facts, task) if plan.objective is not None else None,
    ]
    if plan.activation_checkpointing and not facts.can_checkpoint:
        refused.append(
            error(
                "architecture-no-checkpointing", f"`activation_checkpointing: true` with a `{facts.model_type}` model",
                "transformers has none for this architecture", "set `activation_checkpointing: false`",
            )
        )  # fmt: skip
    if plan.packing:
        refused.append(_packing_fault(plan, facts.config_json))
    raise_all([finding for finding in refused if finding is not None], UnsupportedError)


def _packing_fault(plan: Plan, config_json: str) -> Finding | None:
    from tunekit.advisor.weightless import build
    from tunekit.packable import packing_fault

    return packing_fault(build(json.loads(config_json), Task.named(plan.task)))


def check_output(plan: Plan, overwrite: bool = False) -> None:
    """Refuses to write into a folder that holds something.

    Raises:
        OccupiedError: `output-occupied`.
    """
    folder = Path(plan.output_dir)
    lowest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not lowest.is_dir():
        raise OccupiedError(
            error(
                "output-occupied",
                f"output folder {plan.output_dir!r}",
                f"{lowest.name!r} is a file",
                "set `output_dir` to another folder",
            )
        )
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise OccupiedError(
            error(
                "output-occupied",
                f"output folder {plan.output_dir!r}",
                "it is not empty",
                "set `output_dir` to a new folder, or allow overwriting (`--overwrite`, `overwrite=True`)",
            )
        )


def sharded_arguments(plan: Plan, arguments: Mapping[str, Any], *, cpu: bool) -> dict[str, Any]:
    """`TrainingArguments` keywords with DeepSpeed's settings, where the plan shares by ZeRO.

    Raises:
        InvalidError: `host-field-owned`, for sharding by keyword that the plan already decides.
    """
    owned = [
        k
        for k in ("deepspeed", "fsdp", "fsdp_config", "parallelism_config")
        if k in arguments and plan.sharding is not None
    ]
    raise_all(
        [error("host-field-owned", f"keyword `{k}`", "the plan decides it", "use `plan.replace(sharding=...)`") for k in owned],
        InvalidError,
    )  # fmt: skip
    if plan.sharding not in SHARDINGS and plan.num_processes > 1:
        forget()
    if zero_stage(plan) is None:
        if plan.num_processes > 1 and _told() is None:
            # What accelerate leaves behind after a run with DeepSpeed in the same process would start another.
            os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        return {**arguments, **fsdp_arguments(plan)}
    if cpu:
        _deepspeed_on_cpu()
    # The launcher's file may have been written for cards that it knew, or changed by hand: it holds, as the host checks it.
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE") if _told() else None
    return {**arguments, "deepspeed": json.loads(Path(file).read_text("utf-8")) if file else deepspeed_config(plan)}


def check_divides(plan: Plan, trainer: Any) -> None:
    """Refuses a Trainer whose processes would be whole copies where the plan divides the work by DeepSpeed.

    transformers and accelerate leave a DeepSpeed configuration out in silence where `ACCELERATE_USE_CPU` is set.

    Raises:
        UnsupportedError: `world-sharding`.
    """
    if zero_stage(plan) is None or trainer.is_deepspeed_enabled:
        return
    how = str(trainer.accelerator.distributed_type).removeprefix("DistributedType.")
    raise UnsupportedError(
        error(
            "world-sharding", f"processes that accelerate runs as {how} with `sharding: {plan.sharding}`",
            "its environment leaves DeepSpeed out, so that each would train a whole copy", "start `tunekit launch plan.yaml`",
        )
    )  # fmt: skip


def _deepspeed_on_cpu() -> None:
    """Lets DeepSpeed send by gloo alone.

    Its kernel for shared memory (0.19) is compiled at the first start: that takes a minute and a C++ compiler, and an
    interrupted build leaves a lock behind at which every later start waits for ever.
    """
    # Read once, when DeepSpeed is imported; it would look for a GPU's compiler otherwise.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
