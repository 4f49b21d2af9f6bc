"""Launch settings by value, and the refusals that stand before loading."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import tunekit
from tunekit.admission import admit, check_world, sharded_arguments
from tunekit.errors import InvalidError, OccupiedError, UnsupportedError
from tunekit.sharding import (
    accelerate_config,
    deepspeed_config,
    fsdp_config,
    launch_environment,
    sharding_faults,
    unmap,
    zero_stage,
)


def plan(**changes: Any) -> tunekit.Plan:
    values = {"num_processes": 4, "sharding": "zero3", **changes}
    return tunekit.Plan(model="m", task="causal-lm", method=tunekit.methods.Lora(), **values)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(leaves, value.values()))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(leaves, value))
    else:
        yield value


def test_deepspeed_gets_the_plans_own_numbers() -> None:
    config = deepspeed_config(
        plan(
            per_device_train_batch_size=2,
            gradient_accumulation_steps=8,
            max_grad_norm=0.5,
            mixed_precision="bf16",
            sharding="zero2",
        )
    )
    assert config["train_batch_size"] == 64
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_accumulation_steps"] == 8
    assert config["gradient_clipping"] == 0.5
    assert config["bf16"] == {"enabled": True}
    assert config["fp16"]["enabled"] is False
    assert config["zero_optimization"] == {
        "stage": 2, "overlap_comm": False, "contiguous_gradients": True, "reduce_scatter": True, "reduce_bucket_size": 20_000_000,
        "allgather_partitions": True, "allgather_bucket_size": 20_000_000,
    }  # fmt: skip
    assert {"optimizer", "scheduler"} & set(config) == set()


def test_only_the_third_stage_divides_parameters_and_gathers_them_to_save() -> None:
    third = deepspeed_config(plan())["zero_optimization"]
    assert (third["stage"], third["overlap_comm"]) == (3, True)
    assert third["stage3_gather_16bit_weights_on_model_save"] is True
    for sharding in ("zero1", "zero2"):
        lower = deepspeed_config(plan(sharding=sharding))["zero_optimization"]
        assert lower["stage"] == int(sharding[-1])
        assert not any(name.startswith("stage3") for name in lower)


def test_offloading_names_what_goes_and_where() -> None:
    cpu = {"device": "cpu", "pin_memory": True}
    optimizer = deepspeed_config(plan(offload="optimizer"))["zero_optimization"]
    assert optimizer["offload_optimizer"] == cpu
    assert "offload_param" not in optimizer
    both = deepspeed_config(plan(offload="parameters"))["zero_optimization"]
    assert both["offload_optimizer"] == both["offload_param"] == cpu
    disk = deepspeed_config(plan(offload="optimizer", offload_to="/fast"))["zero_optimization"]
    assert "aio" in deepspeed_config(plan(offload="optimizer", offload_to="/fast"))
    assert disk["offload_optimizer"] == {"device": "nvme", "pin_memory": True, "nvme_path": "/fast"}


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("mixed_precision", [None, "bf16", "fp16"])
@pytest.mark.parametrize("offload", [None, "optimizer"])
def test_no_value_is_left_open_and_all_are_plain(sharding: str, mixed_precision: Any, offload: Any) -> None:
    made = plan(sharding=sharding, mixed_precision=mixed_precision, offload=offload)
    files = (deepspeed_config(made), accelerate_config(made, cpu=True, deepspeed_file="ds.json"))
    assert not {"auto", None} & set(map(str, itertools.chain.from_iterable(map(leaves, files))))
    assert json.loads(json.dumps(files)) == list(files)


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
def test_deepspeed_itself_reads_every_value(sharding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    runtime = pytest.importorskip("deepspeed.runtime.zero.config", reason="needs deepspeed")
    section = deepspeed_config(plan(sharding=sharding))["zero_optimization"]
    known = set()
    for name, field in runtime.DeepSpeedZeroConfig.model_fields.items():
        known |= {name, field.alias or name}
    assert set(section) <= known
    read = runtime.DeepSpeedZeroConfig(**section)
    assert int(read.stage) == zero_stage(plan(sharding=sharding))
    assert read.gather_16bit_weights_on_model_save is (sharding == "zero3")


def test_accelerates_file_starts_the_plans_processes() -> None:
    ddp = accelerate_config(plan(sharding="ddp", mixed_precision="bf16"), cpu=False)
    assert (ddp["distributed_type"], ddp["num_processes"], ddp["mixed_precision"]) == ("MULTI_GPU", 4, "bf16")
    zero = accelerate_config(plan(mixed_precision="bf16"), cpu=False, deepspeed_file="ds.json")
    assert zero["distributed_type"] == "DEEPSPEED"
    assert zero["deepspeed_config"] == {"deepspeed_config_file": "ds.json", "zero3_init_flag": False}
    assert "mixed_precision" not in zero, "accelerate refuses it beside DeepSpeed's file"
    # Told so by its file, accelerate starts one process whatever the number.
    assert accelerate_config(plan(sharding="ddp"), cpu=True)["use_cpu"] is False
    given = {"MALLOC_MMAP_THRESHOLD_": "65536", "ACCELERATE_USE_CPU": "true"}
    assert launch_environment(plan(sharding="ddp"), cpu=True) == given
    assert "ACCELERATE_USE_CPU" not in launch_environment(plan(), cpu=True), "it would be a wish for plain DDP"
    assert launch_environment(plan(), cpu=False) == {}


def test_fsdps_file_says_the_same_as_the_trainers_arguments() -> None:
    made = accelerate_config(plan(sharding="fsdp", mixed_precision="bf16"), cpu=False)
    assert (made["distributed_type"], made["mixed_precision"]) == ("FSDP", "bf16")
    ours = fsdp_config(plan(sharding="fsdp"))
    theirs = made["fsdp_config"]
    assert theirs["fsdp_version"] == ours["version"] == 2
    assert theirs["fsdp_state_dict_type"] == ours["state_dict_type"] == "FULL_STATE_DICT"
    assert theirs["fsdp_reshard_after_forward"] is ours["reshard_after_forward"] is True


def test_the_hybrid_form_divides_within_a_machine() -> None:
    from tunekit.fsdp import fsdp_arguments

    two = fsdp_arguments(plan(sharding="fsdp-hybrid", num_processes=8, num_machines=2))["parallelism_config"]
    assert (two.dp_replicate_size, two.dp_shard_size) == (2, 4)
    assert "parallelism_config" not in fsdp_arguments(plan(sharding="fsdp-hybrid"))
    assert fsdp_arguments(plan(sharding="zero3")) == {}


def test_a_plan_for_405_billion_on_eight_machines_is_started_once_a_machine() -> None:
    large = plan(
        num_processes=64, num_machines=8, per_device_train_batch_size=1, mixed_precision="bf16", dtype="bfloat16"
    )
    config = accelerate_config(large, cpu=False, deepspeed_file="ds.json")
    assert (config["num_processes"], config["num_machines"]) == (64, 8)
    assert config["deepspeed_config"]["deepspeed_multinode_launcher"] == "standard"
    assert deepspeed_config(large)["train_batch_size"] == 64


def test_fsdps_settings_are_taken_by_the_trainer(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    config = fsdp_config(plan(sharding="fsdp"), "LlamaDecoderLayer")
    args = TrainingArguments(str(tmp_path), fsdp=True, fsdp_config=dict(config), use_cpu=True, report_to="none")
    assert args.fsdp_plugin_args == {
        "fsdp_version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_cls_names_to_wrap": "LlamaDecoderLayer",
        "cpu_ram_efficient_loading": False, "state_dict_type": "FULL_STATE_DICT", "activation_checkpointing": False,
        "reshard_after_forward": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"quantization": "int8", "sharding": "fsdp"}, "quantized-sharding"),
        ({"sharding": "fsdp-hybrid", "num_machines": 4}, "hybrid-single"),
        ({"sharding": "zero2", "offload": "optimizer", "offload_to": "/fast"}, "offload-disk"),
        ({"offload": "optimizer", "optim": "adamw_bnb_8bit"}, "offload-optim"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_a_way_out(changes: dict[str, Any], code: str) -> None:
    found = sharding_faults(plan(**changes))
    assert code in [f.code for f in found]
    assert all(f.fix for f in found)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"quantization": "nf4"}, {"quantization": "int8"}, {"sharding": "ddp", "quantization": "nf4"}, {"offload": "parameters"},
        {"sharding": "fsdp", "quantization": "nf4"}, {"sharding": "fsdp-hybrid", "num_machines": 2},
        {"offload": "optimizer", "offload_to": "/fast"},
    ],
)  # fmt: skip
def test_what_can_be_shared_is_not_refused(changes: dict[str, Any]) -> None:
    assert sharding_faults(plan(**changes)) == []


def test_a_launcher_told_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    file.write_text(json.dumps(deepspeed_config(plan(sharding="zero2"))))
    with pytest.raises(UnsupportedError, match=r"world-sharding.*zero2.*sharding: zero3"):
        check_world(plan())
    file.write_text(json.dumps(deepspeed_config(plan())))
    check_world(plan())
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UnsupportedError, match="told to use fsdp"):
        check_world(plan(sharding="ddp"))


def test_a_missing_process_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="world-size"):
        admit(plan(output_dir=str(tmp_path / "run")), loads=False)
    assert not (tmp_path / "run").exists()


def test_an_occupied_folder_is_refused_unless_it_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    alone = plan(num_processes=1, sharding=None, output_dir=str(tmp_path))
    with pytest.raises(OccupiedError, match="output-occupied"):
        admit(alone, loads=False, has_rows=True)
    admit(alone, overwrite=True, loads=False, has_rows=True)


def test_sharding_by_keyword_beside_the_plans_is_refused() -> None:
    with pytest.raises(InvalidError, match="host-field-owned"):
        sharded_arguments(plan(), {"deepspeed": "mine.json"}, cpu=False)
    alone = plan(num_processes=1, sharding=None)
    assert sharded_arguments(alone, {"deepspeed": "mine.json"}, cpu=True) == {"deepspeed": "mine.json"}


def test_weights_get_memory_of_their_own_and_keep_their_values(tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 4)
    save_file({k: v.detach() for k, v in layer.state_dict().items()}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        mapped = {k: file.get_tensor(k) for k in ("weight", "bias")}
    layer.load_state_dict(mapped, assign=True)
    before = {n: (p.data_ptr(), p.clone()) for n, p in layer.named_parameters()}
    unmap(layer)
    for name, p in layer.named_parameters():
        assert p.data_ptr() != before[name][0]
        assert torch.equal(p, before[name][1])
