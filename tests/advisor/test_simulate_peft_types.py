"""Every adapter type that the installed PEFT has is traced without weights, whatever it does when it starts."""

from __future__ import annotations

from typing import Any

import pytest
from peft_rows import L40S, AnyPeft
from peft_types import CANNOT, PROMPT, SETTINGS, TYPES

import zoo
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate import estimate_memory
from tunekit.advisor.simulate.made_up import with_values, without_values
from tunekit.advisor.weightless import build
from tunekit.contracts import Method
from tunekit.estimate import MemoryEstimate
from tunekit.methods.full import Full
from tunekit.methods.p_tuning import PTuning
from tunekit.methods.peft import Peft
from tunekit.methods.prefix_tuning import PrefixTuning
from tunekit.methods.prompt_tuning import PromptTuning
from tunekit.plan import Plan
from tunekit.task import Task
from tunekit.workload import ModelFacts


def llama() -> ModelFacts:
    """Six blocks, wide enough for what the types ask for by default."""
    wide = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 32,
    }
    config = zoo.config("llama")
    return model_facts(type(config)(**{**config.to_dict(), **wide, "num_hidden_layers": 6}))


PLAN = Plan(
    model="x", task="causal-lm", method=Full(), dtype="bfloat16", max_length=24, per_device_train_batch_size=4, optim="adamw_torch",
    max_steps=10,
)  # fmt: skip


def estimate(kind: str, settings: dict[str, Any], **changes: Any) -> MemoryEstimate:
    plan = PLAN.replace(method=AnyPeft(config={"peft_type": kind, **settings}), **changes)
    return estimate_memory(plan, L40S, None, "peft-benchmark", llama())


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in CANNOT])
def test_the_type_is_traced(kind: str) -> None:
    found = estimate(kind, SETTINGS.get(kind, {"target_modules": ["q_proj", "v_proj"]}))
    assert found.fidelity == "traced", found.reasons
    assert 0 < found.trainable_parameters < found.total_parameters
    assert sum(found.parts.values()) == found.allocated_bytes <= found.reserved_bytes


def test_what_cannot_be_traced_is_estimated_coarsely_and_says_so() -> None:
    found = estimate("MULTITASK_PROMPT_TUNING", {**PROMPT, "num_tasks": 2})
    assert found.fidelity == "coarse"
    assert "task_ids" in found.reasons[0]
    assert found.interval[1] >= 2 * found.device_bytes


@pytest.mark.parametrize("start", ["pissa", "olora", "orthogonal"])
def test_starts_taken_from_the_weights_cost_what_others_cost(start: str) -> None:
    plain, special = (
        estimate("LORA", {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": s})
        for s in (True, start)
    )
    assert special.fidelity == "traced"
    assert special.reserved_bytes == plain.reserved_bytes


def test_made_up_values_come_and_go_and_tied_weights_stay_tied() -> None:
    config = zoo.config("llama")
    config.tie_word_embeddings = True
    model = build(config, Task.named("causal-lm"))
    before = {name: (p.shape, p.dtype) for name, p in model.named_parameters()}
    with_values(model)
    assert all(p.device.type == "cpu" and p.std() > 0 for p in model.parameters())
    assert sum(p.untyped_storage().nbytes() for p in model.parameters()) < 100_000
    ids = without_values(model, list(model.parameters()))
    assert ids == {id(p) for p in model.parameters()}
    assert {name: (p.shape, p.dtype) for name, p in model.named_parameters()} == before
    assert all(p.device.type == "meta" for p in model.parameters())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("start", ["eva", "corda", "loftq", "lora_ga"])
def test_starts_taken_from_data_cost_what_others_cost(start: str) -> None:
    more = {"loftq_config": {"loftq_bits": 4}} if start == "loftq" else {}
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    plain, special = estimate("LORA", settings), estimate("LORA", {**settings, "init_lora_weights": start, **more})
    assert special.fidelity == "traced", special.reasons
    assert special.reserved_bytes == plain.reserved_bytes


def test_base_weights_that_frod_keeps_on_the_host_are_not_counted() -> None:
    here, there = (
        estimate("FROD", {"target_modules": ["q_proj", "v_proj"], "runtime_offload_base_weight": o})
        for o in (False, True)
    )
    assert here.parts["weights"] - there.parts["weights"] == 6 * 2 * 256 * 256 * 2


def test_adalora_keeps_three_more_figures_a_value() -> None:
    """Importance, and its running mean and spread, in 32 bits, beside Adam's two states."""
    found = estimate("ADALORA", SETTINGS["ADALORA"])
    assert found.parts["optimizer"] == pytest.approx(5 * 4 * found.trainable_parameters, rel=0.05)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (PromptTuning(num_virtual_tokens=6), PROMPT | {"peft_type": "PROMPT_TUNING"}),
        (
            PTuning(num_virtual_tokens=6, encoder_hidden_size=32),
            PROMPT | {"peft_type": "P_TUNING", "encoder_hidden_size": 32},
        ),
        (PrefixTuning(num_virtual_tokens=6, prefix_projection=False), PROMPT | {"peft_type": "PREFIX_TUNING"}),
    ],
    ids=["prompt", "p", "prefix"],
)
def test_our_soft_prompts_are_pefts_own_in_pefts_benchmark(ours: Method, theirs: dict[str, Any]) -> None:
    one, other = (
        estimate_memory(PLAN.replace(method=m), L40S, None, "peft-benchmark", llama())
        for m in (ours, AnyPeft(config=theirs))
    )
    assert one.fidelity == other.fidelity == "traced", (one.reasons, other.reasons)
    assert one.reserved_bytes == other.reserved_bytes


@pytest.mark.parametrize("kind", ["LORA", "VERA", "LOHA", "OFT", "IA3", "ADALORA", "PREFIX_TUNING", "PROMPT_TUNING"])
def test_the_public_method_says_what_pefts_own_call_says(kind: str) -> None:
    settings = {"peft_type": kind, "target_modules": ["q_proj", "v_proj"], **SETTINGS.get(kind, {})}
    settings |= (
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
        if kind == "IA3"
        else {}
    )
    if "PROMPT" in kind or "PREFIX" in kind:
        settings.pop("target_modules")
    one, other = (
        estimate_memory(PLAN.replace(method=m), L40S, None, "peft-benchmark", llama())
        for m in (Peft(config=settings), AnyPeft(config=settings))
    )
    assert one.fidelity == other.fidelity == "traced", (one.reasons, other.reasons)
    assert one.reserved_bytes == other.reserved_bytes
