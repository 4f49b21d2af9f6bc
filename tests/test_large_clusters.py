"""Plans for 70 and 405 billion parameters on many machines: files, sane values, and less memory than a card has."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import tunekit
from tunekit.cli.main import app
from tunekit.estimate import MemoryEstimate
from tunekit.message_sizes import BUCKET_ELEMENTS, message_sizes
from tunekit.workload import Hardware, ModelFacts

GIB = 2**30
SIZES = {
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "405B": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128},
}


def write_plan(folder: Path, size: str, **changes: Any) -> Path:
    """A Llama's config.json alone, and a plan for it."""
    shape = {**SIZES[size], "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}
    (folder / "model").mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "tie_word_embeddings": False, **shape}  # fmt: skip
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "rows.jsonl").write_text('{"text": "a row"}\n')
    plan = tunekit.Plan(
        model=str(folder / "model"), task="causal-lm", method=tunekit.methods.Lora(), data=tunekit.DataSpec(path=str(folder / "rows.jsonl")),
        max_length=2048, per_device_train_batch_size=1, activation_checkpointing=True, dtype="bfloat16", mixed_precision="bf16",
        sharding="zero3", output_dir=str(folder / "run"), **changes,
    )  # fmt: skip
    return plan.save(folder / "plan.yaml")


def launched(plan: Path, hardware: str, *changes: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the command says, DeepSpeed's file and accelerate's."""
    asked = ["launch", str(plan), *changes, "--hardware", hardware, "--dry-run", "--json"]
    result = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    folder = plan.with_suffix(".launch")
    return (
        json.loads(result.stdout),
        json.loads((folder / "deepspeed.json").read_text()),
        yaml.safe_load((folder / "accelerate.yaml").read_text()),
    )


def leaves(value: Any) -> Iterator[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    yield from [value] if inner is None else itertools.chain.from_iterable(map(leaves, inner))


def sane(told: dict[str, Any], deepspeed: dict[str, Any], accelerate: dict[str, Any], machines: int, here: int) -> None:
    """What DeepSpeed's documentation asks of every value, and nothing left open."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    ranks, zero = machines * here, deepspeed["zero_optimization"]
    assert not {"auto", None} & {
        str(x) if x == "auto" else x for x in leaves([deepspeed, accelerate]) if x in ("auto", None)
    }
    batch = deepspeed["train_micro_batch_size_per_gpu"] * deepspeed["gradient_accumulation_steps"] * ranks
    assert deepspeed["train_batch_size"] == batch
    assert deepspeed["bf16"] == {"enabled": True}
    assert zero["stage"] == 3
    assert 5_000_000 <= zero["reduce_bucket_size"] <= 500_000_000
    assert zero["stage3_prefetch_bucket_size"] <= zero["reduce_bucket_size"]
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert ranks % zero.get("zero_hpz_partition_size", 1) == 0
    DeepSpeedZeroConfig(**zero)
    assert (accelerate["num_machines"], accelerate["num_processes"]) == (machines, ranks)
    assert accelerate["deepspeed_config"]["deepspeed_multinode_launcher"] == "standard"
    assert told["predicted"]["device_bytes"] < told["predicted"]["of_bytes"]
    assert "ADDRESS_OF_MACHINE_0" in told["command"]


def test_seventy_billion_on_two_machines_of_eight(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs deepspeed")
    plan = write_plan(tmp_path, "70B", num_processes=16, num_machines=2)
    told, deepspeed, accelerate = launched(plan, "2x8xH100")
    sane(told, deepspeed, accelerate, 2, 8)
    weights = 70.6e9 * 2 / 16
    assert weights < told["predicted"]["device_bytes"] < weights + 40 * GIB
    # NVLink inside the machines: a second copy there takes 16 GiB of the 80, and is there to be taken.
    assert deepspeed["zero_optimization"]["zero_hpz_partition_size"] == 8


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_four_hundred_billion_on_eight_machines_of_eight(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs deepspeed")
    plan = write_plan(tmp_path, "405B", num_processes=64, num_machines=8)
    told, deepspeed, accelerate = launched(plan, "8x8xH100")
    sane(told, deepspeed, accelerate, 8, 8)
    # A second copy of 810 GB over the eight cards of a machine does not fit.
    assert "zero_hpz_partition_size" not in deepspeed["zero_optimization"]
    _, deepspeed, _ = launched(plan, "8x8xH100", "method={kind: full}", "offload=parameters", "offload_to=/nvme")
    nvme = {"device": "nvme", "pin_memory": True, "nvme_path": "/nvme"}
    assert (
        deepspeed["zero_optimization"]["offload_optimizer"] == deepspeed["zero_optimization"]["offload_param"] == nvme
    )
    assert "aio" in deepspeed


def facts() -> ModelFacts:
    return ModelFacts(
        name="m", config_json="{}", model_type="llama", side="decoder", num_parameters=70_000_000_000, num_layers=80,
        hidden_size=8192, vocab_size=128256,
    )  # fmt: skip


@pytest.mark.parametrize("interconnect", ["nvlink", "pcie"])
def test_messages_grow_with_what_is_free_and_a_machine_copy_follows_the_interconnect(interconnect: Any) -> None:
    plan = tunekit.Plan(
        model="m", task="causal-lm", method=tunekit.methods.Lora(), num_processes=16, num_machines=2, sharding="zero3", mixed_precision="bf16"
    )  # fmt: skip
    cards = Hardware(
        device="cuda", name="80GB", num_devices=8, num_machines=2, memory_bytes=80 * GIB, interconnect=interconnect
    )

    def sizes(taken: int, **changes: Any) -> Any:
        estimate = MemoryEstimate(
            parts={"weights": taken}, allocated_bytes=taken, reserved_bytes=taken, device_bytes=taken, interval=(taken, taken), moment="backward"
        )  # fmt: skip
        return message_sizes(plan.replace(**changes), facts(), cards, estimate)

    full, half, free = sizes(81 * GIB), sizes(79 * GIB), sizes(20 * GIB)
    assert full.bucket_elements < BUCKET_ELEMENTS < half.bucket_elements < free.bucket_elements <= 500_000_000
    assert free.prefetch_elements <= free.bucket_elements
    assert half.machine_copy_ranks == 1, "a second copy would not fit"
    assert free.machine_copy_ranks == (8 if interconnect == "nvlink" else 1)
    assert sizes(20 * GIB, sharding="zero2").machine_copy_ranks == 1
