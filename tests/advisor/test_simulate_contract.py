"""The contract: without weights a step peaks at the same number of bytes as on real tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from simulated import SHAPE, peak_bytes, recorded
from torch.nn import functional as F
from transformers import BertConfig, GPT2Config, PretrainedConfig

import zoo
from tunekit.advisor.observe.model import model_facts
from tunekit.advisor.simulate.kernels import Attention
from tunekit.contracts import Method
from tunekit.discovery import find, slugs
from tunekit.errors import InvalidError
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.task import TASKS, Task

FULL, LORA = Full(), Lora(r=4)
LISTED = {"deberta-v2": 0.001}
"""DeBERTa computes a scale with four-byte tensors that stay on the host; here host and device are one."""

CELLS = [
    ("llama", "causal-lm", FULL), ("llama", "causal-lm", LORA), ("gpt2", "causal-lm", LORA),
    ("bert", "sequence-classification", FULL), ("bert", "token-classification", LORA), ("t5", "seq2seq", LORA),
    ("t5", "sequence-classification", FULL), ("bart", "seq2seq", FULL), ("bart", "sequence-classification", LORA),
    ("gemma3", "causal-lm", LORA), ("mixtral", "causal-lm", FULL), ("modernbert", "multiple-choice", LORA),
]  # fmt: skip


def assert_same_peak(config: PretrainedConfig | str, task: str, method: Method, **changes: object) -> None:
    without = peak_bytes(recorded(config, task, method, weightless=True, **changes))
    real = peak_bytes(recorded(config, task, method, weightless=False, **changes))
    assert real > 100_000, "nothing was recorded"
    assert abs(without - real) <= LISTED.get(str(config), 0.0) * real, f"{without} without weights, {real} with"


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize(("architecture", "task", "method"), CELLS)
def test_weightless_peak_equals_the_real_one(architecture: str, task: str, method: Method, checkpoints: bool) -> None:
    assert_same_peak(architecture, task, method, checkpoints=checkpoints)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5", "bart"])
def test_a_batch_without_padding_takes_the_branch_without_a_mask(architecture: str) -> None:
    task = "causal-lm" if architecture in ("llama", "gpt2") else "seq2seq"
    assert_same_peak(architecture, task, LORA, shape=replace(SHAPE, padded=False))


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize(
    ("architecture", "task"),
    [("llama", "causal-lm"), ("bert", "sequence-classification"), ("t5", "seq2seq"), ("bart", "seq2seq")],
)
def test_mixed_precision_equals_the_real_autocast(architecture: str, task: str, checkpoints: bool) -> None:
    assert_same_peak(architecture, task, FULL, mixed_precision="bf16", checkpoints=checkpoints)


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (
            BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64),
            "sequence-classification",
        ),
        (
            GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=64, bos_token_id=1, eos_token_id=2),
            "causal-lm",
        ),
    ],
    ids=["bert", "gpt2"],
)
def test_dropout_takes_what_it_really_takes(config: PretrainedConfig, task: str) -> None:
    assert_same_peak(config, task, FULL)


def test_on_cuda_dropout_keeps_a_byte_a_value() -> None:
    x = torch.empty(8, 8, device="meta", requires_grad=True)
    with Attention("cuda"):
        mask = F.dropout(x, 0.1, training=True).grad_fn._saved_result1  # type: ignore[union-attr]
        assert mask.dtype == torch.bool
        assert F.dropout(x, 0.1, training=False) is x


@pytest.mark.parametrize("optim", ["sgd", "adafactor", "rmsprop", "adamw_torch_fused"])
def test_optimizer_takes_what_it_really_takes(optim: str) -> None:
    assert_same_peak("llama", "causal-lm", FULL, optim=optim)


def test_gradients_that_are_summed_up_live_through_the_step() -> None:
    assert_same_peak("llama", "causal-lm", FULL, accumulates=True)
    once = peak_bytes(recorded("llama", "causal-lm", FULL, weightless=True))
    summed = peak_bytes(recorded("llama", "causal-lm", FULL, weightless=True, accumulates=True))
    assert summed > once


def default_of(slug: str) -> Method | None:
    """The method as it comes, where it needs no setting."""
    try:
        return find("method", slug)()
    except (TypeError, InvalidError):
        return None


@pytest.mark.slow
@pytest.mark.parametrize("slug", slugs("method"))
@pytest.mark.parametrize("task", [t.name for t in TASKS])
@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_every_cell_of_the_matrix(architecture: str, task: str, slug: str) -> None:
    method = default_of(slug)
    if method is None or not zoo.fits(architecture, Task.named(task)):
        pytest.skip("no such model, or a method that has no defaults")
    if method.supports(model_facts(zoo.config(architecture)), Task.named(task)) is not None:
        pytest.skip("the method refuses the pair")
    for padded in (False, True):
        assert_same_peak(architecture, task, method, shape=replace(SHAPE, padded=padded))
