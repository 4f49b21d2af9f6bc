"""How several processes share the work: DeepSpeed's, FSDP's and accelerate's settings from a plan, every value resolved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunekit.finding import Finding, error
from tunekit.message_sizes import MessageSizes
from tunekit.plan import Plan

if TYPE_CHECKING:
    from torch import nn

_ZERO = {"zero1": 1, "zero2": 2, "zero3": 3}


def zero_stage(plan: Plan) -> int | None:
    """The ZeRO stage of a plan; None where DeepSpeed has no part in it.

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="m", task="causal-lm", method=tunekit.methods.Lora(), num_processes=2, sharding="zero3")
        >>> zero_stage(plan), zero_stage(plan.replace(sharding="ddp"))
        (3, None)
    """
    return _ZERO.get(plan.sharding or "")


def deepspeed_config(plan: Plan, sizes: MessageSizes | None = None) -> dict[str, Any]:
    """DeepSpeed's JSON for a plan with `sharding: zero1`, `zero2` or `zero3`; no value is left to `auto`.

    The optimizer and the schedule are the Trainer's, so that a method's parameter groups (LoRA+, discriminative rates)
    stay what they are; with offloading they therefore run as torch code on the host.

    Args:
        plan: The plan.
        sizes: How much is sent at once, where the cards are known (`tunekit.message_sizes`).

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="m", task="causal-lm", method=tunekit.methods.Full(), num_processes=4, sharding="zero2")
        >>> config = deepspeed_config(plan)
        >>> config["train_batch_size"], config["zero_optimization"]["stage"], config["bf16"]
        (32, 2, {'enabled': False})

    References:
        Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, 2020.
    """
    assert zero_stage(plan) is not None, f"{plan.sharding} is not DeepSpeed's"
    return {
        "train_batch_size": plan.effective_batch_size,
        "train_micro_batch_size_per_gpu": plan.per_device_train_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "gradient_clipping": plan.max_grad_norm,
        "bf16": {"enabled": plan.mixed_precision == "bf16"},
        "fp16": {"enabled": plan.mixed_precision == "fp16", "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000,
                 "hysteresis": 2, "min_loss_scale": 1},
        "zero_optimization": _zero(plan, sizes or MessageSizes()),
        **({"aio": dict(_AIO)} if plan.offload is not None and plan.offload_to != "cpu" else {}),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }  # fmt: skip


_AIO = {
    "block_size": 1048576,
    "queue_depth": 8,
    "intra_op_parallelism": 1,
    "single_submit": False,
    "overlap_events": True,
}
"""How a disk is read and written: DeepSpeed's defaults (`deepspeed/runtime/swap_tensor/constants.py`), written out."""


def _zero(plan: Plan, sizes: MessageSizes) -> dict[str, Any]:
    stage = zero_stage(plan)
    shared = {
        "stage": stage,
        "overlap_comm": stage == 3,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": sizes.bucket_elements,
        "allgather_partitions": True,
        "allgather_bucket_size": sizes.bucket_elements,
        **_offload(plan),
    }
    if stage != 3:
        return shared
    return shared | {
        "sub_group_size": 10**9,
        "stage3_prefetch_bucket_size": sizes.prefetch_elements,
        "stage3_param_persistence_threshold": sizes.resident_elements,
        # DeepSpeed fetches ahead up to this, a bucket at a time at every linear layer, so that its default of 1e9 gathers any
        # model of less whole.
        "stage3_max_live_parameters": sizes.kept_elements + 2 * sizes.prefetch_elements,
        "stage3_max_reuse_distance": sizes.kept_elements,
        # What is saved is whole.
        "stage3_gather_16bit_weights_on_model_save": True,
        **({"zero_hpz_partition_size": sizes.machine_copy_ranks} if sizes.machine_copy_ranks > 1 else {}),
    }


def _offload(plan: Plan) -> dict[str, Any]:
    """Where the optimizer's state lies, and with `offload: parameters` the weights too."""
    if plan.offload is None:
        return {}
    where: dict[str, Any] = {"device": "cpu", "pin_memory": True}
    if plan.offload_to != "cpu":
        where |= {"device": "nvme", "nvme_path": plan.offload_to}
    names = ("offload_optimizer", "offload_param") if plan.offload == "parameters" else ("offload_optimizer",)
    return {name: dict(where) for name in names}


def fsdp_config(plan: Plan, block_class: str | None = None) -> dict[str, Any]:
    """FSDP 2's settings for a plan with `sharding: fsdp` or `fsdp-hybrid`, for a Trainer of your own.

    Activation checkpointing stays the model's own (`activation_checkpointing` of TrainingArguments): FSDP's would rename
    every module, and what was learnt is saved by name.

    Args:
        plan: The plan.
        block_class: The class of the model's blocks, such as `LlamaDecoderLayer`: each is sharded as a unit. None: what
            transformers says must not be split (`_no_split_modules`).

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="m", task="causal-lm", method=tunekit.methods.Full(), num_processes=4, sharding="fsdp")
        >>> fsdp_config(plan, "LlamaDecoderLayer")["reshard_after_forward"]   # TrainingArguments(fsdp=True, fsdp_config=...)
        True

    References:
        Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, 2023.
    """
    assert plan.sharding in ("fsdp", "fsdp-hybrid"), f"{plan.sharding} is not FSDP's"
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        **({"transformer_layer_cls_to_wrap": [block_class]} if block_class else {}),
        "reshard_after_forward": True,
        "cpu_offload": False,
        "cpu_ram_efficient_loading": False,
        "state_dict_type": "FULL_STATE_DICT",
        "activation_checkpointing": False,
    }


def accelerate_config(plan: Plan, *, cpu: bool, deepspeed_file: str | None = None) -> dict[str, Any]:
    """accelerate's YAML, the same on every machine: rank and address of a machine are said on the command line.

    On the CPU it must not say so: accelerate 1.15 starts one process then, whatever number it is told. The environment
    says it instead (`launch_environment`). Beside DeepSpeed's file accelerate refuses `mixed_precision`.

    Args:
        plan: The plan.
        cpu: Whether the processes stay on the CPU.
        deepspeed_file: Where DeepSpeed's JSON lies, for the ZeRO stages.

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="m", task="causal-lm", method=tunekit.methods.Lora(), num_processes=2, sharding="ddp")
        >>> accelerate_config(plan, cpu=True)["distributed_type"]
        'MULTI_GPU'
    """
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO" if plan.num_processes == 1 else "MULTI_GPU",
        "num_machines": plan.num_machines,
        "num_processes": plan.num_processes,
        "machine_rank": 0,
        "rdzv_backend": "static",
        "same_network": True,
        "main_training_function": "main",
        "use_cpu": cpu and plan.num_processes == 1,
        "debug": False,
    }
    if plan.sharding in ("fsdp", "fsdp-hybrid"):
        config |= {"distributed_type": "FSDP", "fsdp_config": _fsdp_for_launcher(plan)}
    if zero_stage(plan) is None:
        return config | {"mixed_precision": plan.mixed_precision or "no"}
    assert deepspeed_file is not None, "ZeRO needs DeepSpeed's file"
    deepspeed: dict[str, Any] = {"deepspeed_config_file": deepspeed_file, "zero3_init_flag": False}
    if plan.num_machines > 1:
        # Started once a machine, by hand or by Slurm; DeepSpeed's own launcher would want to log in to the others.
        deepspeed["deepspeed_multinode_launcher"] = "standard"
    return config | {"distributed_type": "DEEPSPEED", "deepspeed_config": deepspeed}


def _fsdp_for_launcher(plan: Plan) -> dict[str, Any]:
    """The same under accelerate's own names; over machines the hybrid form's two sizes come from the plan, when training starts."""
    told = fsdp_config(plan)
    return {
        "fsdp_version": told["version"],
        "fsdp_auto_wrap_policy": told["auto_wrap_policy"],
        "fsdp_reshard_after_forward": told["reshard_after_forward"],
        "fsdp_state_dict_type": told["state_dict_type"],
        "fsdp_cpu_ram_efficient_loading": told["cpu_ram_efficient_loading"],
        "fsdp_offload_params": told["cpu_offload"],
        "fsdp_activation_checkpointing": told["activation_checkpointing"],
    }


def launch_environment(plan: Plan, *, cpu: bool) -> dict[str, str]:
    """Environment variables that the processes of a plan need.

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="m", task="causal-lm", method=tunekit.methods.Lora(), num_processes=2, sharding="zero2")
        >>> launch_environment(plan, cpu=True)
        {'MALLOC_MMAP_THRESHOLD_': '65536', 'DS_ACCELERATOR': 'cpu'}
    """
    if not cpu or plan.num_processes == 1:
        return {}
    # Parameters that are gathered and freed come and go in large blocks; glibc soon keeps such blocks in its heap, in which
    # holes are left. With a fixed threshold it gives them back.
    needed = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    # transformers and accelerate take `ACCELERATE_USE_CPU` for plain DDP, and leave DeepSpeed's file out in silence.
    return needed | ({"ACCELERATE_USE_CPU": "true"} if zero_stage(plan) is None else {"DS_ACCELERATOR": "cpu"})


def sharding_faults(plan: Plan) -> list[Finding]:
    """Why the plan's quantisation, precision and optimizer cannot go with its sharding; nothing is loaded.

    Example:
        >>> import tunekit
        >>> plan = tunekit.Plan(model="m", task="causal-lm", method=tunekit.methods.Lora(), num_processes=2, sharding="zero3")
        >>> [f.code for f in sharding_faults(plan.replace(sharding="fsdp", quantization="int8"))]
        ['quantized-sharding']
    """
    stage, fsdp = zero_stage(plan), plan.sharding in ("fsdp", "fsdp-hybrid")
    rules = (
        (
            plan.sharding == "fsdp-hybrid" and plan.num_machines > 1 and plan.num_processes == plan.num_machines,
            "hybrid-single", f"`sharding: fsdp-hybrid` with {plan.num_processes} processes on {plan.num_machines} machines",
            "it divides within a machine, where there is nobody to divide with", "set `sharding: ddp`, or `fsdp`",
        ),
        (
            plan.quantization == "int8" and fsdp,
            "quantized-sharding", f"`quantization: int8` with `sharding: {plan.sharding}`",
            "FSDP puts plain tensors in the place of bitsandbytes' 8-bit weights, which lose the scales that they carry",
            "set `quantization: nf4`, which is divided, or `sharding: ddp`",
        ),
        (
            plan.offload is not None and plan.offload_to != "cpu" and stage != 3,
            "offload-disk", f"`offload_to: {plan.offload_to}` with `sharding: {plan.sharding}`",
            "DeepSpeed moves state to a disk under ZeRO-3 only", "set `sharding: zero3`, or `offload_to: cpu`",
        ),
        (
            plan.offload is not None and any(word in plan.optim for word in ("8bit", "4bit", "paged", "apex")),
            "offload-optim", f"`offload: {plan.offload}` with `optim: {plan.optim}`", "its kernels run on the device, the offloaded state lies on the host",
            "set `optim: adamw_torch_fused`",
        ),
    )  # fmt: skip
    return [error(*finding) for broken, *finding in rules if broken]


@contextmanager
def whole_weights() -> Iterator[None]:
    """Within it transformers loads whole weights, under ZeRO-3 too; DeepSpeed divides them when training starts.

    A method reads shapes and values of the weights that it changes, which a shard does not have.
    """
    import sys

    if "transformers.integrations.deepspeed" not in sys.modules:
        yield
        return
    from transformers.integrations import deepspeed

    kept = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept


def unmap(model: nn.Module) -> None:
    """Gives every weight memory of its own instead of a share of the mapped file.

    Before DeepSpeed divides the weights, rank 0 writes its own into those of all other ranks. On the CPU pages of a mapped file
    are copied by that, and kept until the last weight is divided; memory of its own is let go weight by weight.
    """
    for p in model.parameters():
        p.data = p.data.clone()
