"""The head learns at its own rate beside prompts and factors, and as fast as them where a network makes them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import tunekit
from tunekit.methods import IA3, PrefixTuning, PromptTuning, PTuning, PTuningV2

DIRECT = [IA3(), PTuningV2(), PromptTuning(), PTuning(encoder=None), PrefixTuning(prefix_projection=False)]
NETWORKS = [
    PTuningV2(prefix_projection=True),
    PTuning(),
    PTuning(encoder="lstm", encoder_hidden_size=8),
    PrefixTuning(),
]


def rates(model: Any, method: Any) -> dict[bool, set[float]]:
    """Rates of what is in the head, and of what is not."""
    names = {id(p): n for n, p in model.named_parameters()}
    found: dict[bool, set[float]] = {True: set(), False: set()}
    held = []
    for group in method.parameter_groups(model, 0.01, 0.1):
        for p in group["params"]:
            held.append(names[id(p)])
            found["classifier" in names[id(p)] or "pooler" in names[id(p)]].add(round(group["lr"], 9))
    assert sorted(held) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    return found


@pytest.mark.parametrize("method", DIRECT, ids=lambda m: m.slug)
def test_beside_vectors_and_factors_the_head_learns_at_a_tenth(method: Any, tiny_encoder: str) -> None:
    model = tunekit.prepare(
        AutoModelForSequenceClassification.from_pretrained(tiny_encoder), method, "sequence-classification"
    )
    assert rates(model, method) == {True: {0.001}, False: {0.01}}


@pytest.mark.parametrize("method", NETWORKS, ids=lambda m: m.slug)
def test_beside_a_network_the_head_learns_ten_times_as_fast(method: Any, tiny_encoder: str) -> None:
    model = tunekit.prepare(
        AutoModelForSequenceClassification.from_pretrained(tiny_encoder), method, "sequence-classification"
    )
    assert rates(model, method) == {True: {0.1}, False: {0.01}}


def test_a_ratio_that_is_given_is_kept(tiny_encoder: str) -> None:
    method = PTuningV2(head_lr_ratio=0.5)
    model = tunekit.prepare(
        AutoModelForSequenceClassification.from_pretrained(tiny_encoder), method, "sequence-classification"
    )
    assert rates(model, method) == {True: {0.005}, False: {0.01}}


def test_a_language_model_has_no_head_to_hold_back(tiny_decoder: str) -> None:
    method = PTuningV2()
    model = tunekit.prepare(AutoModelForCausalLM.from_pretrained(tiny_decoder), method, "causal-lm")
    assert rates(model, method) == {True: set(), False: {0.01}}


@pytest.mark.parametrize("ratio", [0.0, -1.0])
@pytest.mark.parametrize("kind", [IA3, PTuningV2, PromptTuning, PTuning, PrefixTuning])
def test_a_ratio_that_is_no_ratio_is_refused(kind: Any, ratio: float) -> None:
    with pytest.raises(tunekit.errors.InvalidError) as caught:
        kind(head_lr_ratio=ratio)
    assert "head-lr-ratio" in str(caught.value)
