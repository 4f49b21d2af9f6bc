"""Architectures that no list of ours names: a method works on them by structure, or says why it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from torch import nn

import zoo
from matrix.cells import REASONS
from tunekit.attach import load, prepare
from tunekit.contracts import Method
from tunekit.errors import UnsupportedError
from tunekit.structure import head_modules
from tunekit.task import Task

CLASSIFY, WRITE, REWRITE = (Task.named(n) for n in ("sequence-classification", "causal-lm", "seq2seq"))
METHODS = zoo.methods()
_DECODER = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BIG = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_DRY = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
_BERT = {
    **_BIG, "vocab_size": 100, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0,
    "max_position_embeddings": 64,
}  # fmt: skip
_PAIR = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 100, "dropout": 0.0, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
_T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100, "dropout_rate": 0.0,
    "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip
CONFIGS: Mapping[str, tuple[Callable[[], Any], Task]] = {
    "opt": (lambda: t.OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32,
            max_position_embeddings=64, dropout=0.0, attention_dropout=0.0, **_DECODER), CLASSIFY),
    "falcon": (lambda: t.FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=64, **_DRY, **_DECODER), WRITE),
    "longformer": (lambda: t.LongformerConfig(**_BERT, attention_window=[4, 4], sep_token_id=2, bos_token_id=1, eos_token_id=2), CLASSIFY),
    "bloom": (lambda: t.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **_DRY, **_DECODER), CLASSIFY),
    "gpt-neox": (lambda: t.GPTNeoXConfig(**_BIG, **_DRY, **_DECODER, max_position_embeddings=64, classifier_dropout=0.0), CLASSIFY),
    "mpt": (lambda: t.MptConfig(d_model=32, n_layers=2, n_heads=4, max_seq_len=64, **_DECODER), WRITE),
    "granite": (lambda: t.GraniteConfig(**_BIG, **_DECODER, num_key_value_heads=2), WRITE),
    "mpnet": (lambda: t.MPNetConfig(**_BERT), CLASSIFY),
    "mt5": (lambda: t.MT5Config(**_T5), REWRITE),
    "mbart": (lambda: t.MBartConfig(**_PAIR, max_position_embeddings=64), REWRITE),
    "led": (lambda: t.LEDConfig(**_PAIR, max_encoder_position_embeddings=64, max_decoder_position_embeddings=64, attention_window=4), REWRITE),
    "switch": (lambda: t.SwitchTransformersConfig(**_T5, num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
               num_decoder_layers=2, router_jitter_noise=0.0), REWRITE),
}  # fmt: skip
COVERING = {("opt", "lora"), ("opt", "bottleneck-adapter"), ("opt", "p-tuning-v2"), ("longformer", "prompt-tuning"), ("falcon", "prefix-tuning"), ("led", "lora")}  # fmt: skip


def base(architecture: str) -> tuple[nn.Module, Task]:
    make, task = CONFIGS[architecture]
    config = make()
    if task is CLASSIFY:
        config.problem_type = "single_label_classification"
    torch.manual_seed(0)
    return getattr(t, task.auto_class).from_config(config), task


def prepared_or_refused(model: nn.Module, method: Method, task: Task) -> tuple[nn.Module | None, tuple[str, ...]]:
    """The prepared model, or why there is none."""
    try:
        return prepare(model, method, task), ()
    except UnsupportedError as e:
        return None, e.codes


CELLS = [
    pytest.param(a, m, marks=() if (a, m) in COVERING else pytest.mark.slow) for a in CONFIGS for m in METHODS
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "slug"), CELLS)
def test_it_learns_and_reloads_or_is_refused_for_a_reason_on_the_list(
    architecture: str, slug: str, tmp_path: Path
) -> None:
    model, task = base(architecture)
    method = METHODS[slug]
    model, codes = prepared_or_refused(model, method, task)
    if model is None:
        assert codes
        assert {*codes} <= {*REASONS}
        return
    inputs = zoo.batch(task)
    zoo.train(model, method.parameter_groups(model, 1e-2, 0.0), inputs)
    expected = zoo.logits(model, inputs)
    assert expected.shape == zoo.logits(base(architecture)[0], inputs).shape
    model.save_pretrained(tmp_path)
    assert torch.allclose(zoo.logits(load(base(architecture)[0], tmp_path), inputs), expected, atol=1e-5)


def test_a_base_inside_of_a_shell_is_no_head() -> None:
    model, task = base("opt")
    assert head_modules(model, task) == ("score",)


def test_longformers_tokens_all_see_the_prompt() -> None:
    model, task = base("longformer")
    model = prepare(model, METHODS["prompt-tuning"], task)
    inputs = zoo.batch(task)
    before = zoo.logits(model, inputs)
    with torch.no_grad():
        model.get_parameter("longformer.soft_prompt.vectors.weight").mul_(5)
    assert not torch.allclose(zoo.logits(model, inputs), before, atol=1e-4)
