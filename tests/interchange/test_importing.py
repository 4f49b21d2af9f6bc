"""Training files of LLaMA-Factory and Axolotl become plans that say the same, and what is left out is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import tunekit
from tunekit.interchange.importing import Imported

LLAMA_FACTORY = {
    "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct", "trust_remote_code": True, "stage": "sft", "do_train": True,
    "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all", "dataset": "identity,alpaca_en_demo", "template": "llama3",
    "cutoff_len": 2048, "preprocessing_num_workers": 16, "output_dir": "saves/sft", "logging_steps": 10, "plot_loss": True,
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 1.0e-4, "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True, "val_size": 0.1,
}  # fmt: skip
AXOLOTL = {
    "base_model": "NousResearch/Llama-3.2-1B", "load_in_8bit": False, "load_in_4bit": True, "strict": False,
    "datasets": [{"path": "teknium/GPT4-LLM-Cleaned", "type": "alpaca"}], "val_set_size": 0.1, "output_dir": "./outputs/qlora-out",
    "adapter": "qlora", "lora_model_dir": None, "sequence_len": 2048, "sample_packing": True, "lora_r": 32, "lora_alpha": 16,
    "lora_dropout": 0.05, "lora_target_linear": True, "wandb_project": None, "gradient_accumulation_steps": 4, "micro_batch_size": 2,
    "num_epochs": 1, "optimizer": "paged_adamw_32bit", "lr_scheduler": "cosine", "learning_rate": 0.0002, "bf16": "auto",
    "gradient_checkpointing": True, "flash_attention": True, "warmup_steps": 10, "weight_decay": 0.0,
}  # fmt: skip


def read(tmp_path: Path, values: dict, **keywords: object) -> Imported:
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(values))
    return tunekit.import_plan(file, **keywords)


def left(found: Imported) -> str:
    return "\n".join(f.seen for f in found.findings if f.code == "import-left-out")


def test_a_llama_factory_file_keeps_every_value_that_a_plan_has(tmp_path: Path) -> None:
    found = read(tmp_path, LLAMA_FACTORY)
    plan = found.plan
    assert found.tool == "llama-factory"
    assert plan.method == tunekit.methods.Lora(r=8, lora_alpha=16)
    assert (plan.learning_rate, plan.num_train_epochs, plan.warmup, plan.lr_scheduler_type) == (
        1e-4,
        3.0,
        0.1,
        "cosine",
    )
    assert (plan.per_device_train_batch_size, plan.gradient_accumulation_steps, plan.max_length) == (1, 8, 2048)
    assert (plan.dtype, plan.mixed_precision, plan.output_dir) == ("bfloat16", "bf16", "saves/sft")
    assert plan.activation_checkpointing, "it checkpoints unless told otherwise"


def test_what_a_plan_lacks_is_said_and_nothing_is_lost_in_silence(tmp_path: Path) -> None:
    found = read(tmp_path, {**LLAMA_FACTORY, "use_galore": True, "neftune_noise_alpha": 5})
    for name in ("trust_remote_code", "use_galore", "neftune_noise_alpha", "identity", "alpaca_en_demo", "val_size"):
        assert name in left(found)
    said = " ".join(f.seen for f in found.findings)
    for name in ("template", "preprocessing_num_workers", "plot_loss"):
        assert name in said


def test_every_key_of_either_file_is_carried_or_said(tmp_path: Path) -> None:
    for values in (LLAMA_FACTORY, AXOLOTL):
        for strange in ("mystery_knob", "another_one"):
            assert strange in left(read(tmp_path, {**values, strange: 7}))


def test_a_registered_data_set_is_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    registry = {"mine": {"file_name": "mine.json", "columns": {"prompt": "q", "query": "more", "response": "a"}}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(registry))
    data = read(tmp_path, {**LLAMA_FACTORY, "dataset": "mine"}).plan.data
    assert data is not None
    assert data.path == str(tmp_path / "data" / "mine.json")
    assert dict(data.columns) == {"prompt": "q", "input": "more", "completion": "a"}
    assert data.eval_share == 0.1


def test_conversations_are_read_as_messages(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    registry = {"talk": {"hf_hub_url": "owner/talk", "formatting": "sharegpt", "split": "train_sft"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(registry))
    data = read(tmp_path, {**LLAMA_FACTORY, "dataset": "talk"}).plan.data
    assert data is not None
    assert (data.path, dict(data.columns), data.train_split) == (
        "owner/talk",
        {"messages": "conversations"},
        "train_sft",
    )


def test_an_axolotl_file_keeps_every_value_that_a_plan_has(tmp_path: Path) -> None:
    found = read(tmp_path, AXOLOTL)
    plan = found.plan
    assert found.tool == "axolotl"
    assert plan.method == tunekit.methods.Lora(r=32, lora_alpha=16, lora_dropout=0.05)
    assert (plan.quantization, plan.packing, plan.optim, plan.warmup) == ("nf4", True, "paged_adamw_32bit", 10)
    assert (plan.attn_implementation, plan.activation_checkpointing, plan.mixed_precision) == (
        "flash_attention_2",
        True,
        "bf16",
    )
    assert plan.data is not None
    assert dict(plan.data.columns) == {"prompt": "instruction", "input": "input", "completion": "output"}
    assert plan.data.eval_share == 0.1
    assert left(found) == ""


@pytest.mark.parametrize(
    ("setting", "sharding", "offload"),
    [
        ("examples/deepspeed/ds_z3_config.json", "zero3", None),
        ("examples/deepspeed/ds_z2_offload_config.json", "zero2", "optimizer"),
        ("deepspeed_configs/zero1.json", "zero1", None),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, "zero3", "parameters"),
    ],
)
def test_deepspeed_becomes_sharding_once_the_processes_are_known(
    tmp_path: Path, setting: object, sharding: str, offload: str | None
) -> None:
    values = dict(LLAMA_FACTORY)
    plan = read(tmp_path, {**values, "deepspeed": setting}, num_processes=8).plan
    assert (plan.sharding, plan.offload, plan.num_processes) == (sharding, offload, 8)
    alone = read(tmp_path, {**values, "deepspeed": setting})
    assert alone.plan.sharding is None
    assert "sharding" in left(alone)


def test_full_and_frozen_tuning_become_their_methods(tmp_path: Path) -> None:
    full = read(tmp_path, {**LLAMA_FACTORY, "finetuning_type": "full"}).plan
    assert full.method == tunekit.methods.Full()
    assert (full.dtype, full.mixed_precision) == ("float32", "bf16"), "what learns is kept in 32 bits there"
    frozen = read(tmp_path, {**LLAMA_FACTORY, "finetuning_type": "freeze", "freeze_trainable_layers": 3}).plan
    assert frozen.method == tunekit.methods.Partial(last_layers=3)
    named = read(tmp_path, {**{k: v for k, v in AXOLOTL.items() if k not in ("adapter", "load_in_4bit")}, "unfrozen_parameters": ["lm_head"]}).plan  # fmt: skip
    assert named.method == tunekit.methods.Partial(last_layers=None, patterns=("lm_head",))


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        ({**LLAMA_FACTORY, "stage": "dpo", "finetuning_type": "galore"}, {"import-stage", "import-method"}),
        ({**AXOLOTL, "rl": "kto", "adapter": "llama-adapter"}, {"import-stage", "import-method"}),
        ({"model": "x"}, {"import-tool"}),
        ({**AXOLOTL, "base_model": None}, {"import-model"}),
        ({**AXOLOTL, "learning_rate": -1.0}, {"plan-learning-rate"}),
    ],
)
def test_what_cannot_become_a_plan_is_one_clear_error(tmp_path: Path, values: dict, codes: set[str]) -> None:
    with pytest.raises(tunekit.TunekitError) as caught:
        read(tmp_path, values)
    assert set(caught.value.codes) == codes


def test_the_command_writes_the_plan_that_the_function_gives(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tunekit.cli.main import app

    file, plan = tmp_path / "given.yaml", tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(AXOLOTL))
    done = CliRunner().invoke(app, ["import", str(file), "--output", str(plan), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert tunekit.Plan.load(plan) == tunekit.import_plan(file).plan
    assert json.loads(done.stdout)["tool"] == "axolotl"
    again = CliRunner().invoke(
        app, ["import", str(file), "--output", str(plan), "--from", "trl"], catch_exceptions=False
    )
    assert again.exit_code == 2
    assert "import-tool" in again.output
