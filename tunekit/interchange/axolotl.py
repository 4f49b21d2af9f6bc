"""Axolotl's training files: which of its settings a plan has, under which name.

Names are those of its documented configuration schema (0.8 to 0.12, 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunekit.errors import raise_all
from tunekit.finding import Finding, error
from tunekit.interchange.given import Given
from tunekit.interchange.zero_setting import zero_of

_PLAIN = {
    "output_dir": "output_dir", "micro_batch_size": "per_device_train_batch_size", "eval_batch_size": "per_device_eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps", "learning_rate": "learning_rate", "num_epochs": "num_train_epochs",
    "lr_scheduler": "lr_scheduler_type", "weight_decay": "weight_decay", "max_grad_norm": "max_grad_norm", "seed": "seed",
    "sequence_len": "max_length", "max_steps": "max_steps", "revision_of_model": "revision",
}  # fmt: skip
"""Its name to a plan's, where the value means the same."""

_HOST_DEFAULTS = {"num_train_epochs": 1.0, "warmup": 0, "lr_scheduler_type": "cosine", "per_device_train_batch_size": 1}
"""Its own, where a plan's differ."""

_OPTIMIZERS = {
    "adamw_bnb_8bit": "adamw_bnb_8bit",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
"""Its other names are transformers' own."""

_NO_BEARING = (
    "strict", "dataset_prepared_path", "wandb_project", "wandb_entity", "wandb_watch", "wandb_name", "wandb_log_model", "wandb_run_id",
    "wandb_mode", "logging_steps", "evals_per_epoch", "saves_per_epoch", "save_steps", "eval_steps", "save_strategy", "eval_strategy",
    "save_total_limit", "tf32", "xformers_attention", "resume_from_checkpoint", "auto_resume_from_checkpoints", "early_stopping_patience",
    "local_rank", "debug", "pad_to_sequence_len", "eval_sample_packing", "hub_model_id", "hub_strategy", "mlflow_experiment_name", "use_tensorboard",
    "loss_watchdog_threshold", "loss_watchdog_patience", "model_type", "tokenizer_type", "is_llama_derived_model", "save_safetensors",
    "dataloader_num_workers", "dataloader_pin_memory", "dataset_processes", "eval_table_size", "eval_max_new_tokens", "save_first_step",
    "gradient_checkpointing_kwargs", "base_model_config", "lora_fan_in_fan_out", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "group_by_length",
)  # fmt: skip

_SCHEDULES = {"one_cycle": "cosine", "rex": "cosine"}


def plan_values(given: Given, folder: Path) -> dict[str, Any]:
    """A plan's plain values out of the file's.

    Args:
        given: The file's values.
        folder: Where it lies; relative paths in it are looked for there too.

    Raises:
        InvalidError: `import-stage`, `import-model`, `import-method`.
    """
    model, adapter, stage = given.take("base_model"), given.take("adapter"), given.take("rl")
    raise_all(_faults(model, adapter, stage))
    if given.take("trust_remote_code"):
        given.lost(
            "`trust_remote_code: true`",
            "code from a checkpoint is never run unasked",
            "use an architecture that transformers has",
        )
    values: dict[str, Any] = {"model": model, "task": "causal-lm", **_HOST_DEFAULTS}
    values |= {ours: v for theirs, ours in _PLAIN.items() if (v := given.take(theirs)) is not None}
    if values["lr_scheduler_type"] in _SCHEDULES:
        given.assumed(
            f"`lr_scheduler: {values['lr_scheduler_type']}`", "transformers has no such schedule", "cosine stands in"
        )
        values["lr_scheduler_type"] = _SCHEDULES[values["lr_scheduler_type"]]
    values["method"] = _method(given, adapter)
    values |= _steps(given) | _memory(given, folder, adapter) | _rows(given)
    given.ignore(_NO_BEARING, "they change where and when things are written, not what is learnt")
    return values


def _faults(model: Any, adapter: Any, stage: Any) -> list[Finding]:
    faults = []
    if stage:
        faults.append(
            error("import-stage", f"`rl: {stage}`", "tunekit fine-tunes on examples", "use TRL for preferences")
        )
    if adapter not in (None, "lora", "qlora"):
        faults.append(error("import-method", f"`adapter: {adapter}`", "no such method here", "use lora or qlora"))
    if not isinstance(model, str) or not model:
        faults.append(
            error("import-model", f"`base_model: {model}`", "there is nothing to train", "name a hub id or a folder")
        )
    return faults  # fmt: skip


def _method(given: Given, adapter: str | None) -> dict[str, Any]:
    if given.take("lora_model_dir"):
        given.lost(
            "`lora_model_dir`",
            "a plan starts a method anew",
            "attach it with `tunekit.load` and pass the model to `tunekit.trainer`",
        )
    frozen = given.take("unfrozen_parameters")
    if adapter is None and frozen:
        return {"kind": "partial", "last_layers": None, "patterns": list(frozen)}
    if adapter is None:
        return {"kind": "full"}
    method: dict[str, Any] = {
        "kind": "lora", "r": given.take("lora_r", default=8), "lora_alpha": given.take("lora_alpha", default=16),
        "lora_dropout": given.take("lora_dropout", default=0.0), "use_dora": bool(given.take("peft_use_dora", default=False)),
        "use_rslora": bool(given.take("peft_use_rslora", default=False)),
    }  # fmt: skip
    everywhere, names = given.take("lora_target_linear"), given.take("lora_target_modules")
    method["target_modules"] = names if names and not everywhere else None
    if saved := given.take("lora_modules_to_save"):
        method["modules_to_save"] = saved
    if (init := given.take("peft_init_lora_weights")) is not None:
        method["init_lora_weights"] = init
    if (ratio := given.take("loraplus_lr_ratio")) is not None:
        method["loraplus_lr_ratio"] = ratio
    return method


def _steps(given: Given) -> dict[str, Any]:
    steps, share = given.take("warmup_steps", default=0), given.take("warmup_ratio", default=0.0)
    values: dict[str, Any] = {"warmup": steps or share}
    if (optimizer := given.take("optimizer")) is not None:
        values["optim"] = _OPTIMIZERS.get(optimizer, optimizer)
    return values


def _memory(given: Given, folder: Path, adapter: str | None) -> dict[str, Any]:
    values: dict[str, Any] = {"activation_checkpointing": bool(given.take("gradient_checkpointing", default=False))}
    four = given.take("load_in_4bit", default=False) or adapter == "qlora"
    eight = given.take("load_in_8bit", default=False)
    if four or eight:
        values["quantization"] = "nf4" if four else "int8"
    half = (
        "bf16"
        if given.take("bf16", "bfloat16") in (True, "auto", "full")
        else "fp16"
        if given.take("fp16", "float16")
        else None
    )
    values |= {"dtype": {"bf16": "bfloat16", "fp16": "float16", None: "float32"}[half], "mixed_precision": half}
    if given.take("flash_attention"):
        values["attn_implementation"] = "flash_attention_2"
    elif given.take("sdp_attention"):
        values["attn_implementation"] = "sdpa"
    elif (named := given.take("attn_implementation")) is not None:
        values["attn_implementation"] = named
    given.take("sdp_attention")
    plugins = [str(p) for p in given.take("plugins", default=[])]
    if any("liger" in p.lower() for p in plugins):
        values["loss_kernel"] = "liger"
        given.ignore(
            [
                f"liger_{n}"
                for n in (
                    "rope",
                    "rms_norm",
                    "glu_activation",
                    "layer_norm",
                    "fused_linear_cross_entropy",
                    "cross_entropy",
                )
            ],
            "Liger's kernels come together",
        )
    for plugin in plugins:
        if "liger" not in plugin.lower():
            given.lost(
                f"plugin `{plugin}`",
                "code from a file is never run",
                "look whether a plan's `loss_kernel` does what it did",
            )
    return values | _sharding(given, folder)  # fmt: skip


def _sharding(given: Given, folder: Path) -> dict[str, Any]:
    if (setting := given.take("deepspeed")) is not None:
        stage, offload = zero_of(setting, folder)
        return {"sharding": stage, **({"offload": offload} if offload else {})}
    if given.take("fsdp", "fsdp_config") or given.take("fsdp_version"):
        given.ignore(["fsdp_config", "fsdp_version"], "a plan resolves FSDP's settings itself")
        return {"sharding": "fsdp"}
    return {}


def _rows(given: Given) -> dict[str, Any]:
    values: dict[str, Any] = {"packing": bool(given.take("sample_packing", default=False))}
    if given.take("train_on_inputs"):
        given.lost(
            "`train_on_inputs: true`", "the loss sees the answers only", "make one `text` column of prompt and answer"
        )
    if (template := given.take("chat_template")) is not None:
        given.assumed(
            f"`chat_template: {template}`",
            "conversations go through the tokenizer's own",
            "set it in the checkpoint if it lacks one",
        )
    for name in ("special_tokens", "tokens", "added_tokens_overrides"):
        if given.take(name):
            given.lost(
                f"`{name}`",
                "the checkpoint's tokenizer is used as it is",
                "save a tokenizer that has them beside the model",
            )
    sets, heldout = given.take("datasets", default=[]), given.take("test_datasets", default=[])
    sets = [s for s in sets if isinstance(s, Mapping)]
    for extra in sets[1:]:
        given.lost(f"data set `{extra.get('path')}`", "a plan reads one data set", "join the files before")
    if not sets:
        return values
    data: dict[str, Any] = {
        "path": str(
            (sets[0].get("data_files") if sets[0].get("path") in ("json", "csv", "parquet") else None)
            or sets[0].get("path")
        ),
        "columns": _columns(given, sets[0]),
    }
    share = given.take("val_set_size", default=0.0)
    if 0 < share < 1:
        data["eval_share"] = share
    elif share:
        given.lost(f"`val_set_size: {share}`", "a plan holds out a share", "set `data.eval_share`")
    if heldout and isinstance(heldout[0], Mapping):
        data["eval_path"] = str(heldout[0].get("path"))
    if split := sets[0].get("split"):
        data["train_split"] = split
    return {**values, "data": data}  # fmt: skip


def _columns(given: Given, data: Mapping[str, Any]) -> dict[str, str]:
    """What its prompt strategy says of the columns; nothing where it says what a plan reads off the columns itself."""
    kind = data.get("type", "completion")
    if isinstance(kind, Mapping):
        named = {
            "prompt": kind.get("field_instruction"),
            "input": kind.get("field_input"),
            "completion": kind.get("field_output"),
        }
        if kind.get("format"):
            given.lost(
                f"`type.format: {kind['format']!r}`",
                "a plan's template has other placeholders",
                "set `data.template`, a `str.format` pattern over the columns",
            )
        return {ours: theirs for ours, theirs in named.items() if theirs}
    first = str(kind).partition(".")[0].partition(":")[0]
    if first in ("alpaca", "alpaca_w_system", "alpaca_chat"):
        given.assumed(
            f"`type: {kind}`",
            "instruction, input and output are joined without the Alpaca preamble",
            "set `data.template` for another prompt",
        )
        return {"prompt": "instruction", "input": "input", "completion": "output"}
    if first in ("chat_template", "sharegpt"):
        return {"messages": data.get("field_messages", "conversations" if first == "sharegpt" else "messages")}
    if first in ("completion", "pretrain"):
        return {"text": data.get("field", "text")}
    given.lost(
        f"`type: {kind}`",
        "a plan has no such prompt strategy",
        "name the columns with `data.columns` and a `data.template`",
    )
    return {}  # fmt: skip
