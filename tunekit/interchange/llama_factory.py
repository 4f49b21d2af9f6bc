"""LLaMA-Factory's training files: which of its settings a plan has, under which name.

Names and defaults are those of its argument classes (`finetuning_args`, `model_args`, `data_args`, 2025).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunekit.errors import raise_all
from tunekit.finding import Finding, error
from tunekit.interchange.given import Given
from tunekit.interchange.zero_setting import zero_of

_PLAIN = {
    "output_dir": "output_dir", "per_device_train_batch_size": "per_device_train_batch_size",
    "per_device_eval_batch_size": "per_device_eval_batch_size", "gradient_accumulation_steps": "gradient_accumulation_steps",
    "learning_rate": "learning_rate", "num_train_epochs": "num_train_epochs", "lr_scheduler_type": "lr_scheduler_type",
    "weight_decay": "weight_decay", "max_grad_norm": "max_grad_norm", "optim": "optim", "seed": "seed", "cutoff_len": "max_length",
    "model_revision": "revision",
}  # fmt: skip
"""Its name to a plan's, where the value means the same."""

_HOST_DEFAULTS = {"learning_rate": 5e-5, "warmup": 0, "per_device_train_batch_size": 8}
"""The Hugging Face Trainer's own, which it keeps, where a plan's differ."""

_NO_BEARING = (
    "do_train", "do_eval", "overwrite_cache", "overwrite_output_dir", "preprocessing_num_workers", "dataloader_num_workers", "logging_steps",
    "save_steps", "save_strategy", "save_total_limit", "plot_loss", "save_only_model", "report_to", "ddp_timeout", "eval_steps",
    "eval_strategy", "evaluation_strategy", "run_name", "logging_dir", "cache_dir", "include_num_input_tokens_seen", "resume_from_checkpoint",
    "load_best_model_at_end", "save_safetensors", "disable_tqdm", "hub_token", "use_fast_tokenizer", "predict_with_generate", "log_level",
    "dataset_dir", "double_quantization", "dataloader_pin_memory", "low_cpu_mem_usage", "ddp_find_unused_parameters", "bf16_full_eval",
)  # fmt: skip

_ATTENTION = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "sdpa": "sdpa", "disabled": "eager"}


def plan_values(given: Given, folder: Path) -> dict[str, Any]:
    """A plan's plain values out of the file's.

    Args:
        given: The file's values.
        folder: Where it lies; relative paths in it are looked for there too.

    Raises:
        InvalidError: `import-stage`, `import-model`, `import-method`.
    """
    stage, kind = given.take("stage", default="sft"), given.take("finetuning_type", default="lora")
    model = given.take("model_name_or_path")
    raise_all(_faults(stage, kind, model))
    if given.take("trust_remote_code"):
        given.lost(
            "`trust_remote_code: true`",
            "code from a checkpoint is never run unasked",
            "use an architecture that transformers has",
        )
    values: dict[str, Any] = {"model": model, "task": "causal-lm", **_HOST_DEFAULTS, "max_length": 2048}
    values |= {ours: v for theirs, ours in _PLAIN.items() if (v := given.take(theirs)) is not None}
    values["method"] = _method(given, kind)
    values |= _warmup(given) | _precision(given, kind) | _memory(given, folder) | _rows(given, folder, stage)
    given.ignore(_NO_BEARING, "they change where and when things are written, not what is learnt")
    return values


def _faults(stage: str, kind: str, model: Any) -> list[Finding]:
    faults = []
    if stage not in ("sft", "pt"):
        faults.append(
            error(
                "import-stage",
                f"`stage: {stage}`",
                "tunekit fine-tunes on examples",
                "import files with `stage: sft` or `pt`; for preferences use TRL",
            )
        )
    if kind not in ("lora", "full", "freeze", "oft"):
        faults.append(
            error("import-method", f"`finetuning_type: {kind}`", "no such method here", "use lora, full or freeze")
        )
    if not isinstance(model, str) or not model:
        faults.append(
            error(
                "import-model",
                f"`model_name_or_path: {model}`",
                "there is nothing to train",
                "name a hub id or a folder",
            )
        )
    return faults  # fmt: skip


def _method(given: Given, kind: str) -> dict[str, Any]:
    if given.take("adapter_name_or_path") is not None:
        given.lost(
            "`adapter_name_or_path`",
            "a plan starts a method anew",
            "attach it with `tunekit.load` and pass the model to `tunekit.trainer`",
        )
    if kind == "full":
        return {"kind": "full"}
    if kind == "freeze":
        layers = given.take("freeze_trainable_layers", default=2)
        if given.take("freeze_trainable_modules") not in (None, "all"):
            given.lost(
                "`freeze_trainable_modules`",
                "whole layers are trained",
                "use `method: {kind: partial, ...}` with a pattern",
            )
        return {"kind": "partial", "last_layers": max(1, abs(int(layers)))}
    if kind == "oft":
        return {
            "kind": "peft",
            "config": {"peft_type": "OFT", "r": 0, "oft_block_size": given.take("oft_block_size", default=32)},
        }
    rank = given.take("lora_rank", default=8)
    method: dict[str, Any] = {
        "kind": "lora", "r": rank, "lora_alpha": given.take("lora_alpha", default=2 * rank), "lora_dropout": given.take("lora_dropout", default=0.0),
        "use_dora": bool(given.take("use_dora", default=False)), "use_rslora": bool(given.take("use_rslora", default=False)),
    }  # fmt: skip
    target = given.take("lora_target", default="all")
    names = target.split(",") if isinstance(target, str) else list(target)
    method["target_modules"] = None if "all" in names else [n.strip() for n in names]
    if saved := given.take("additional_target"):
        method["modules_to_save"] = [n.strip() for n in saved.split(",")] if isinstance(saved, str) else list(saved)
    if (ratio := given.take("loraplus_lr_ratio")) is not None:
        method["loraplus_lr_ratio"] = ratio
    if given.take("pissa_init"):
        rounds = given.take("pissa_iter", default=16)
        method["init_lora_weights"] = "pissa" if rounds == -1 else f"pissa_niter_{rounds}"
    return method  # fmt: skip


def _warmup(given: Given) -> dict[str, Any]:
    steps, share = given.take("warmup_steps", default=0), given.take("warmup_ratio", default=0.0)
    return {"warmup": steps or share}


def _precision(given: Given, kind: str) -> dict[str, Any]:
    pure = given.take("pure_bf16")
    half = "bf16" if given.take("bf16") or pure else "fp16" if given.take("fp16") else None
    dtype = {"bf16": "bfloat16", "fp16": "float16", None: "float32"}[half]
    if pure:
        return {"dtype": "bfloat16", "mixed_precision": None}
    # What learns is kept in 32 bits there, and under full fine-tuning that is everything.
    return {"dtype": "float32" if kind != "lora" else dtype, "mixed_precision": half}


def _memory(given: Given, folder: Path) -> dict[str, Any]:
    bits, form = given.take("quantization_bit"), given.take("quantization_type", default="nf4")
    backend = given.take("quantization_method", default="bnb")
    values: dict[str, Any] = {
        "activation_checkpointing": not given.take("disable_gradient_checkpointing", default=False)
    }
    if bits is not None and str(backend).lower() in ("bnb", "bitsandbytes") and bits in (4, 8):
        values["quantization"] = form if bits == 4 else "int8"
    elif bits is not None:
        given.lost(
            f"`quantization_bit: {bits}` by {backend}",
            "bases are quantised to 4 or 8 bits by bitsandbytes",
            "set `quantization: nf4`",
        )
    if (attention := given.take("flash_attn", default="auto")) in _ATTENTION:
        values["attn_implementation"] = _ATTENTION[attention]
    if given.take("enable_liger_kernel"):
        values["loss_kernel"] = "liger"
    if (setting := given.take("deepspeed")) is not None:
        stage, offload = zero_of(setting, folder)
        values |= {"sharding": stage, **({"offload": offload} if offload else {})}
    return values


def _rows(given: Given, folder: Path, stage: str) -> dict[str, Any]:
    packs = bool(given.take("packing", default=stage == "pt") or given.take("neat_packing", default=False))
    if (template := given.take("template")) is not None:
        given.assumed(
            f"`template: {template}`",
            "conversations go through the tokenizer's own chat template",
            "set `tokenizer.chat_template` in the checkpoint if it lacks one",
        )
    if given.take("train_on_prompt"):
        given.lost(
            "`train_on_prompt: true`", "the loss sees the answers only", "make one `text` column of prompt and answer"
        )
    if (limit := given.take("max_samples")) is not None:
        given.lost(
            f"`max_samples: {limit}`", "a plan trains on all rows of its split", "cut the file to its first rows"
        )
    if (steps := given.take("max_steps", default=-1)) > 0:
        packs_and_steps: dict[str, Any] = {"packing": packs, "max_steps": steps}
    else:
        packs_and_steps = {"packing": packs}
    data = _data(given, folder)
    return {**packs_and_steps, **({"data": data} if data else {})}  # fmt: skip


def _data(given: Given, folder: Path) -> dict[str, Any] | None:
    """The first data set that the registry beside the file knows, as rows to read."""
    wanted, share = given.take("dataset"), given.take("val_size", default=0.0)
    names = [n.strip() for n in wanted.split(",")] if isinstance(wanted, str) else list(wanted or [])
    where = Path(str(given.take("dataset_dir", default="data")))
    known, root = _registry(folder, where)
    found = next((n for n in names if isinstance(known.get(n), Mapping)), None)
    for name in names:
        if name != found:
            why = "a plan reads one data set" if found else f"no `{where / 'dataset_info.json'}` with it was found"
            given.lost(f"data set `{name}`", why, "set `data: {path: ...}`, joining several files before")
    if (heldout := given.take("eval_dataset")) is not None:
        given.lost(f"`eval_dataset: {heldout}`", "its registry is not a plan's", "set `data.eval_path`")
    if found is None:
        if share:
            given.lost(
                f"`val_size: {share}`", "there are no rows to hold out from yet", f"set `data.eval_share: {share}`"
            )
        return None
    info = known[found]
    path = info.get("hf_hub_url") or str(root / str(info.get("file_name", found)))
    data: dict[str, Any] = {"path": path, "columns": _columns(info)}
    if share and 0 < share < 1:
        data["eval_share"] = share
    elif share:
        given.lost(f"`val_size: {share}`", "a share is below 1", "set `data.eval_share`")
    if split := info.get("split"):
        data["train_split"] = split
    return data


def _registry(folder: Path, where: Path) -> tuple[Mapping[str, Any], Path]:
    for root in (folder / where, folder.parent / where, folder.parent.parent / where, where):
        try:
            known = json.loads((root / "dataset_info.json").read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(known, Mapping):
            return known, root
    return {}, folder


def _columns(info: Mapping[str, Any]) -> dict[str, str]:
    named = info.get("columns") if isinstance(info.get("columns"), Mapping) else {}
    assert isinstance(named, Mapping)
    if info.get("formatting") == "sharegpt":
        return {"messages": named.get("messages", "conversations")}
    if set(named) == {"prompt"}:
        return {"text": named["prompt"]}
    columns = {"prompt": named.get("prompt", "instruction"), "completion": named.get("response", "output")}
    asked = named.get("query", None if named else "input")
    return {**columns, **({"input": asked} if asked else {})}
