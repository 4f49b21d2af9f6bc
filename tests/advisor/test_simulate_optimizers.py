"""Every optimizer that a plan or PEFT's benchmark can name is answered with the states it keeps."""

from __future__ import annotations

from typing import Any

import pytest
from peft_rows import L40S, AnyPeft

from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate import estimate_memory
from tunekit.advisor.simulate.optimizers import make
from tunekit.estimate import MemoryEstimate
from tunekit.methods.full import Full
from tunekit.plan import Plan
from tunekit.workload import ModelFacts

LORA = AnyPeft(config={"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]})


def llama() -> ModelFacts:
    from transformers import LlamaConfig

    return model_facts(
        LlamaConfig(
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=8,
            vocab_size=512,
        )
    )


def found(optim: str, method: Any = None, loop: Any = "trainer") -> MemoryEstimate:
    plan = Plan(
        model="x",
        task="causal-lm",
        method=method or Full(),
        max_length=8,
        per_device_train_batch_size=2,
        optim=optim,
        max_steps=10,
    )
    return estimate_memory(plan, L40S, None, loop, llama())


@pytest.mark.parametrize(
    ("optim", "bytes_per_parameter"),
    [
        ("adamw_torch", 8), ("adamw_torch_fused", 8), ("sgd", 0), ("adagrad", 4), ("rmsprop", 4), ("adamw_bnb_8bit", 2.1), ("lion_8bit", 1.1),
        ("adamw_torch_4bit", 1.3), ("schedule_free_adamw", 8), ("stable_adamw", 8), ("lomo", 0), ("adalomo", 0), ("grokadamw", 12),
        ("paged_adamw_8bit", 0),
    ],
)  # fmt: skip
def test_states_are_as_large_as_the_optimizer_keeps_them(optim: str, bytes_per_parameter: float) -> None:
    """The embeddings' states stay in 32 bits under 8-bit optimizers: a few per cent here."""
    estimate = found(optim)
    assert estimate.fidelity == "traced"
    assert not any("counted as AdamW" in reason for reason in estimate.reasons)
    share = estimate.parts.get("optimizer", 0) / estimate.total_parameters
    assert share == pytest.approx(bytes_per_parameter, rel=0.45 if "bit" in optim else 0.02)


KNOWN = ("rank 128", "counted as AdamW")
"""How an estimate says that it took something for granted."""


def test_every_name_that_transformers_has_is_traced_or_says_what_was_taken_for_granted() -> None:
    from transformers.training_args import OptimizerNames

    assumed = {}
    for name in OptimizerNames:
        estimate = found(str(name.value), LORA)
        assert estimate.fidelity == "traced", (name, estimate.reasons)
        said = [reason for reason in estimate.reasons if reason.startswith("optimizer ")]
        assert all(any(k in reason for k in KNOWN) for reason in said)
        if said:
            assumed[str(name.value)] = said[0]
    as_adamw = {name for name, reason in assumed.items() if "counted as AdamW" in reason}
    assert as_adamw == {"adamw_torch_xla", "adamw_torch_npu_fused"}, "devices that are no CUDA cards"
    assert {n for n in assumed if n not in as_adamw} == {n for n in assumed if n.startswith(("galore", "apollo"))}


BITSANDBYTES = [
    ("adamw_bnb_8bit", "AdamW8bit"), ("lion_8bit", "Lion8bit"), ("lion_32bit", "Lion"), ("ademamix", "AdEMAMix"),
    ("ademamix_8bit", "AdEMAMix8bit"), ("rmsprop_bnb", "RMSprop"), ("rmsprop_bnb_8bit", "RMSprop8bit"), ("rmsprop_bnb_32bit", "RMSprop32bit"),
]  # fmt: skip


@pytest.mark.parametrize(("optim", "theirs"), BITSANDBYTES)
@pytest.mark.parametrize("shape", [(64, 1), (64, 260)], ids=["small", "large"])
def test_states_are_those_that_bitsandbytes_really_makes(optim: str, theirs: str, shape: tuple[int, int]) -> None:
    import torch

    bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    p = torch.nn.Parameter(torch.ones(shape))
    p.grad = torch.ones(shape)
    real = getattr(bnb.optim, theirs)([p], lr=1e-3)
    real.init_state(real.param_groups[0], p, 0, 0)
    # `qmap`: the 256 values that a byte stands for, one table for all parameters
    kept = [t for k, t in real.state[p].items() if isinstance(t, torch.Tensor) and "qmap" not in k]
    ours = [state for _, state in make(optim, [p], "cuda")[0].states()]
    assert sum(t.nbytes for t in ours) == sum(t.nbytes for t in kept) > 0


@pytest.mark.parametrize("optim", ["galore_adamw", "apollo_adamw"])
def test_low_rank_states_are_smaller_and_say_what_was_assumed(optim: str) -> None:
    estimate = found(optim)
    assert estimate.parts["optimizer"] < found("adamw_torch").parts["optimizer"]
    assert any("rank 128" in reason for reason in estimate.reasons)


@pytest.mark.parametrize(
    "optim",
    [
        "AdamW",
        "Adam",
        "SGD",
        "RMSprop",
        "NAdam",
        "RAdam",
        "Adamax",
        "Adagrad",
        "Adadelta",
        "ASGD",
        "Rprop",
        "Muon",
        "lora+",
        "riemannian",
    ],
)
def test_names_of_pefts_benchmark_are_known(optim: str) -> None:
    estimate = found(optim, LORA, "peft-benchmark")
    assert estimate.fidelity == "traced", estimate.reasons
    assert not any("counted as AdamW" in reason for reason in estimate.reasons)


def test_lora_fa_trains_one_factor_of_two() -> None:
    both, one = (found(o, LORA, "peft-benchmark") for o in ("AdamW", "lora-fa"))
    assert one.fidelity == "traced", one.reasons
    assert one.trainable_parameters * 2 == both.trainable_parameters
    assert one.allocated_bytes < both.allocated_bytes
    assert found("AdamW", LORA, "peft-benchmark") == both, "what was frozen for one does not stay frozen for others"


def test_an_unknown_name_is_counted_as_adamw_and_says_so() -> None:
    estimate = found("something_new")
    assert estimate.parts["optimizer"] == found("adamw_torch").parts["optimizer"]
    assert any("counted as AdamW" in reason for reason in estimate.reasons)
