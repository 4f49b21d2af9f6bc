"""A model that cannot be traced, because its code looks at values, is estimated coarsely and stops no advice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tunekit
import zoo
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate import estimate_memory, estimate_time
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.plan import Plan
from tunekit.workload import Hardware

CARD = Hardware(device="cuda", name="A10G", memory_bytes=22 * 2**30)
_FORWARD = LlamaForCausalLM.forward


def stubborn(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
    """As somebody's own code may be: how it goes on hangs on the tokens of the batch."""
    found = _FORWARD(self, input_ids=input_ids, **kwargs)
    for token in input_ids[:, 0].numpy():
        found.logits = found.logits + float(token)
    return found


def config(width: int) -> LlamaConfig:
    """A model that is not all overhead; each test has one of its own, since what was traced is kept."""
    plain = zoo.config("llama").to_dict() | {"hidden_size": width, "intermediate_size": 512, "vocab_size": 2000}
    plain |= {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32, "num_hidden_layers": 6}
    return LlamaConfig(**plain)


@pytest.mark.parametrize(("method", "width"), [(Full(), 256), (Lora(r=4), 264)], ids=["full", "lora"])
def test_the_estimate_is_coarse_says_why_and_holds_what_tracing_says(
    method: Any, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(model="x", task="causal-lm", method=method, max_length=64, per_device_train_batch_size=4, max_steps=10)
    traced = estimate_memory(plan, CARD, model=model_facts(config(width)))
    monkeypatch.setattr(LlamaForCausalLM, "forward", stubborn)
    other = model_facts(config(width + 16))
    found = estimate_memory(plan, CARD, model=other)
    assert found.fidelity == "coarse"
    assert "could not be traced" in found.reasons[0]
    assert found.interval[1] >= 3 * found.interval[0], "bounds are wide"
    assert sum(found.parts.values()) == found.allocated_bytes
    assert traced.fidelity == "traced"
    assert found.interval[0] <= traced.device_bytes <= found.interval[1]
    assert estimate_time(plan, CARD, model=other).fidelity == "coarse"


def test_advice_goes_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "forward", stubborn)
    advice = tunekit.advise(
        config(296), task="causal-lm", num_examples=1000, mean_tokens=20, hardware="24GB", methods=["full", "lora"]
    )
    assert advice.ranked
    assert all(entry.memory.fidelity == "coarse" for entry in advice.ranked)


def test_the_model_really_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "forward", stubborn)
    model = LlamaForCausalLM(config(256))
    assert model(input_ids=torch.ones(2, 4, dtype=torch.long)).logits.shape == (2, 4, 2000)
