"""FSDP 2 in the host's Trainer: its arguments from a plan, and on the CPU, where accelerate would leave it out in silence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunekit.plan import Plan
from tunekit.structure import blocks, task_model

SHARDINGS = ("fsdp", "fsdp-hybrid")


def fsdp_arguments(plan: Plan) -> dict[str, Any]:
    """`TrainingArguments` keywords for a plan with `sharding: fsdp` or `fsdp-hybrid`; empty for any other.

    The hybrid form divides within a machine and holds one whole copy a machine.

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="m", task="causal-lm", method=tunekit.methods.Full(), num_processes=4, sharding="fsdp")
        >>> sorted(fsdp_arguments(plan)), fsdp_arguments(plan.replace(sharding="ddp"))
        (['fsdp', 'fsdp_config'], {})

    References:
        Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, 2023.
    """
    if plan.sharding not in SHARDINGS:
        return {}
    from tunekit.sharding import fsdp_config

    made: dict[str, Any] = {"fsdp": True, "fsdp_config": fsdp_config(plan)}
    if plan.sharding == "fsdp-hybrid" and plan.num_machines > 1:
        from accelerate.parallelism_config import ParallelismConfig

        here = plan.num_processes // plan.num_machines
        made["parallelism_config"] = ParallelismConfig(dp_replicate_size=plan.num_machines, dp_shard_size=here)
    return made


@contextmanager
def held_back(args: Any) -> Iterator[Any]:
    """The arguments without their `parallelism_config` where accelerate would refuse it: with processes on the CPU.

    Yields:
        What was held back, for `share`; None where nothing was.
    """
    config = getattr(args, "parallelism_config", None)
    if config is None or args.device.type != "cpu" or args.fsdp_plugin_args is None:
        yield None
        return
    args.parallelism_config = None
    try:
        yield config
    finally:
        args.parallelism_config = config


def share(trainer: Any, parallelism: Any = None) -> None:
    """Turns FSDP on where a Trainer was told to use it and its processes are on the CPU.

    accelerate (1.15, `AcceleratorState.__init__`) looks at its FSDP settings for devices of every kind but the CPU, where the
    run would become DDP without a word; torch's FSDP 2 itself works over gloo. Delete when accelerate takes MULTI_CPU.

    Args:
        trainer: The host's Trainer, when it has made its accelerator.
        parallelism: accelerate's `ParallelismConfig`, where `held_back` kept one for now.
    """
    if trainer.args.fsdp_plugin_args is None or trainer.is_fsdp_enabled:
        return
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    if state.distributed_type != DistributedType.MULTI_CPU:
        return
    plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    if state._mixed_precision != "no":
        plugin.set_mixed_precision(state._mixed_precision)
    state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True
    if parallelism is not None:
        state.parallelism_config, state.device_mesh = parallelism, parallelism.get_device_mesh("cpu")
        parallelism._validate_accelerator(trainer.accelerator)


def by_blocks(trainer: Any) -> None:
    """Has the model's blocks divided as units, where the user names no others.

    By default accelerate takes what must not be split over devices, with encoders the embeddings too, and then divides the
    word embeddings in them once more, which fails (accelerate 1.15, `fsdp2_prepare_model`).
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None or plugin.fsdp_version != 2 or plugin.transformer_cls_names_to_wrap:
        return
    names = {type(block).__name__ for _, layers in blocks(task_model(trainer.model)) for block in layers}
    plugin.transformer_cls_names_to_wrap = sorted(names) or None


def forget() -> None:
    """Leaves nothing of an earlier run with FSDP in this process behind that would turn it on for a run that shares otherwise."""
    import os

    # accelerate (1.15, `Accelerator.__init__`) sets the first and reads it at the next start.
    for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        os.environ.pop(name, None)
