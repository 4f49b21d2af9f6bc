"""Sharing the work changes one rank's memory as each form of sharing says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tunekit
import zoo
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate import estimate_memory
from tunekit.advisor.simulate.collated import Shape
from tunekit.advisor.simulate.held import held_in
from tunekit.advisor.simulate.per_rank import PerRank
from tunekit.advisor.simulate.question import Question
from tunekit.estimate import MemoryEstimate
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.plan import Plan
from tunekit.workload import Hardware, ModelFacts

CARDS = Hardware(device="cuda", name="A10G", memory_bytes=22 * 2**30, num_devices=8)


def wide(hidden_size: int = 256) -> ModelFacts:
    """A model that is not all overhead."""
    config = zoo.config("llama")
    size = {
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": 12,
        "vocab_size": 8000,
    }
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32}
    return model_facts(type(config)(**{**config.to_dict(), **size, **heads}))


def found(sharding: str | None, ranks: int = 4, hidden_size: int = 256, **changes: Any) -> MemoryEstimate:
    plain: dict[str, Any] = {
        "model": "x", "task": "causal-lm", "method": Full(), "max_length": 32, "per_device_train_batch_size": 1, "max_steps": 10,
        "sharding": sharding, "num_processes": ranks if sharding else 1,
    }  # fmt: skip
    return estimate_memory(Plan(**{**plain, **changes}), CARDS, None, model=wide(hidden_size))


def at_peak(estimate: MemoryEstimate, part: str) -> int:
    return estimate.parts.get(part, 0)


def test_ddp_holds_gradients_once_more() -> None:
    alone, shared = found(None), found("ddp")
    parameters = 4 * alone.trainable_parameters
    assert shared.parts["communication"] == parameters
    assert shared.allocated_bytes == alone.allocated_bytes + parameters


def test_each_zero_stage_divides_more() -> None:
    sizes = [found(stage, mixed_precision="bf16").allocated_bytes for stage in ("zero1", "zero2", "zero3")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_more_ranks_take_less_each(stage: str) -> None:
    few, many = (found(stage, ranks, mixed_precision="bf16") for ranks in (2, 8))
    assert many.allocated_bytes < few.allocated_bytes
    assert at_peak(many, "optimizer") * 4 == pytest.approx(at_peak(few, "optimizer"), rel=0.01)
    assert at_peak(many, "optimizer copies") * 4 == pytest.approx(at_peak(few, "optimizer copies"), rel=0.01)


def test_zero_keeps_sixteen_bytes_a_parameter_over_all_ranks_under_mixed_precision() -> None:
    """Two for the weights on every rank; twelve for states and 32-bit copies and two for gradients, divided."""
    shared = found("zero1", 4, mixed_precision="bf16")
    n = shared.total_parameters
    assert at_peak(shared, "weights") == pytest.approx(2 * n, rel=0.01)
    assert at_peak(shared, "optimizer") + at_peak(shared, "optimizer copies") == pytest.approx(12 * n / 4, rel=0.01)


def test_offloading_moves_states_to_the_host_and_says_how_much() -> None:
    here, there = found("zero2", mixed_precision="bf16"), found("zero2", mixed_precision="bf16", offload="optimizer")
    assert there.allocated_bytes < here.allocated_bytes
    assert at_peak(there, "optimizer") == at_peak(there, "optimizer copies") == 0
    expected = f"{16 * there.trainable_parameters / 2**30:.1f} GiB of each machine's memory"
    assert any(expected in reason for reason in there.reasons)


@pytest.mark.parametrize("sharding", ["zero3", "fsdp"])
def test_weights_are_divided_and_gathered_two_blocks_at_a_time(sharding: str) -> None:
    alone, shared = found(None), found(sharding, 8)
    assert at_peak(shared, "weights") == pytest.approx(at_peak(alone, "weights") / 8, rel=0.01)
    assert at_peak(shared, "communication") > 0
    assert shared.allocated_bytes < alone.allocated_bytes


@pytest.mark.parametrize("sharding", ["ddp", "zero1", "zero2", "zero3", "fsdp"])
def test_parts_still_sum_to_the_peak(sharding: str) -> None:
    estimate = found(sharding)
    assert sum(estimate.parts.values()) == estimate.allocated_bytes <= estimate.reserved_bytes


def test_a_hybrid_divides_within_a_machine_only() -> None:
    inside = found("fsdp", 4)
    over = found("fsdp-hybrid", 8, num_machines=2)
    assert at_peak(over, "weights") == at_peak(inside, "weights")
    assert at_peak(over, "optimizer") == at_peak(inside, "optimizer")
    assert at_peak(found("fsdp", 8, num_machines=2), "weights") == pytest.approx(at_peak(over, "weights") / 2, rel=0.01)


@pytest.mark.parametrize("sharding", ["zero3", "fsdp", "fsdp-hybrid"])
def test_saving_divided_weights_takes_host_memory_and_says_how_much(sharding: str) -> None:
    whole = found(None)
    expected = f"saving takes {4 * whole.total_parameters / 2**30:.1f} GiB of the first rank's host memory"
    assert expected in found(sharding, 4).reasons
    assert not any("saving takes" in reason for reason in found("zero2", 4).reasons)


def test_a_divided_quantised_base_is_held_whole_while_it_is_loaded() -> None:
    facts: dict[str, Any] = {"method": Lora(), "quantization": "nf4", "dtype": "bfloat16", "mixed_precision": "bf16"}
    copied, divided = found("ddp", **facts), found("zero3", **facts)
    assert at_peak(divided, "weights") < at_peak(copied, "weights") / 2
    assert divided.reserved_bytes >= at_peak(copied, "weights")
    assert any("before it is divided" in reason for reason in divided.reasons)
    assert not any("before it is divided" in reason for reason in copied.reasons)


def test_a_rank_on_the_cpu_holds_the_whole_base_before_zero3_divides_it() -> None:
    plan = Plan(
        model="x",
        task="causal-lm",
        method=Lora(),
        max_length=4,
        per_device_train_batch_size=1,
        sharding="zero3",
        num_processes=8,
    )
    on_cpu = estimate_memory(plan, Hardware(device="cpu", name="cpu", memory_bytes=2**35), None, model=wide())
    assert on_cpu.moment == "dividing"
    base = 4 * (on_cpu.total_parameters - on_cpu.trainable_parameters)
    assert base <= on_cpu.reserved_bytes < base + 1024, "buffers beside the weights"
    assert estimate_memory(plan, CARDS, None, model=wide()).moment != "dividing"


def test_on_the_cpu_a_checkpoint_of_divided_weights_is_the_peak_where_a_rank_trains_little() -> None:
    plan = Plan(
        model="x", task="causal-lm", method=Full(), max_length=4, per_device_train_batch_size=1, sharding="zero3", num_processes=32,
        optim="sgd",
    )  # fmt: skip
    host = Hardware(device="cpu", name="cpu", memory_bytes=2**35)
    estimate = estimate_memory(plan, host, None, model=wide())
    assert estimate.moment == "saving"
    assert estimate.allocated_bytes > 4 * estimate.total_parameters, "the gathered weights, and the rank's share"


def test_a_merge_that_takes_more_than_training_is_told() -> None:
    quantised = found(None, method=Lora(r=4), quantization="nf4", max_length=4, hidden_size=1024)
    told = [r for r in quantised.reasons if r.startswith("merging afterwards takes more than training")]
    whole = 4 * quantised.total_parameters + 4 * quantised.trainable_parameters
    assert told == [f"merging afterwards takes more than training: {whole / 2**30:.1f} GiB of the host's memory"]
    assert not any(
        "merging" in r for r in found(None, method=tunekit.methods.PromptTuning(), quantization="nf4").reasons
    )
    assert not any("merging" in r for r in found(None).reasons)


def update(sharding: str | None, ranks: int = 4, **changes: Any) -> PerRank:
    """A rank's share of a step whose update goes over lists, with a temporary as large as what it updates."""
    plain: dict[str, Any] = {
        "model": "x", "task": "causal-lm", "method": Full(), "max_length": 32, "per_device_train_batch_size": 1, "max_steps": 10,
        "sharding": sharding, "num_processes": ranks if sharding else 1, "optim": "adamw_torch",
    }  # fmt: skip
    plan = Plan(**{**plain, **changes})
    shape = Shape(batch=1, length=32, padded=False)
    return held_in(Question(plan=plan, hardware=CARDS, data=None, model=wide()), shape).share


def most_in_update(share: PerRank) -> int:
    """Bytes that the update takes at most beyond what was alive before it."""
    events, sizes = share.timeline.events, share.timeline.sizes
    names = np.where(events >= 0, events, ~events)
    alive = np.cumsum(np.where(events >= 0, sizes[names], -sizes[names]))
    begin = next(a for a, moment in share.timeline.moments if moment == "optimizer")
    return int(alive[begin:].max() - alive[begin - 1])


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3", "fsdp"])
def test_the_temporaries_of_the_update_are_divided(sharding: str) -> None:
    few, many = (most_in_update(update(sharding, ranks)) for ranks in (2, 8))
    assert many == pytest.approx(few / 4, rel=0.05)
    assert most_in_update(update("ddp")) == pytest.approx(most_in_update(update(None)), rel=0.01)


def test_deepspeed_lays_the_gradient_flat_in_the_update() -> None:
    fully_sharded, deepspeed = (most_in_update(update(s, optim="adamw_torch_fused")) for s in ("fsdp", "zero3"))
    assert fully_sharded <= 0
    assert deepspeed == pytest.approx(4 * found(None).trainable_parameters / 4, rel=0.01)


def test_an_update_on_the_host_takes_nothing_of_the_device() -> None:
    assert most_in_update(update("zero3", offload="optimizer")) == 0


def test_states_on_a_disk_are_divided_as_those_in_memory(tmp_path: Path) -> None:
    memory, disk = (found("zero3", 8, offload="optimizer", offload_to=to) for to in ("cpu", str(tmp_path)))
    assert memory.allocated_bytes == disk.allocated_bytes
