"""Every adapter type that the installed PEFT has takes as many bytes without weights as it really takes, at every depth."""

from __future__ import annotations

import json
import warnings
from typing import Any

import peft
import pytest
from peft_rows import AnyPeft
from peft_types import CANNOT, SETTINGS, TYPES
from simulated import SHAPE, peak_bytes, recorded, step

import zoo
from tunekit.advisor.simulate.peak import peak
from tunekit.advisor.simulate.record import Subject, record, record_at
from tunekit.advisor.weightless import read_config
from tunekit.task import Task

BOTH = ["q_proj", "v_proj"]
LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "target_modules": BOTH}
VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True}, "rslora": {"use_rslora": True}, "kasa": {"kasa_config": {}}, "dropout": {"lora_dropout": 0.1},
    "bias": {"bias": "lora_only", "lora_bias": True}, "bdlora": {"use_bdlora": {"target_modules_bd_a": ["o_proj"], "target_modules_bd_b": BOTH, "nblocks": 2}},
    "tokens": {"trainable_token_indices": [1, 2]}, "saved": {"modules_to_save": ["lm_head"]}, "numbered": {"layers_to_transform": [0, 5]},
    "pattern": {"rank_pattern": {"layers.7.self_attn.q_proj": 8}}, "all-linear": {"target_modules": "all-linear"},
}  # fmt: skip
CASES = {
    kind: {"peft_type": kind, **SETTINGS.get(kind, {"target_modules": BOTH})} for kind in TYPES if kind not in CANNOT
}
CASES |= {
    name: {**LORA, **more} for name, more in VARIANTS.items() if more.keys() <= peft.LoraConfig.__dataclass_fields__.keys()
}  # fmt: skip
CASES["VBLORA"] |= {"vector_length": 16, "num_vectors": 8}
CASES["C3A"] |= {"block_size": 16}
if "LILY" in CASES:  # blocks in groups of fewer than a shallow copy has, and of more
    CASES |= {
        f"lily-{n}": {"peft_type": "LILY", "r": 4, "stride_A": n, "num_B": 2, "target_modules": BOTH} for n in (3, 6)
    }
BY_ROWS = ("OSF", "PSOFT")
"""torch lays the right singular vectors out by rows on CUDA, which weightless tensors stand for, and by columns on the CPU. A slice of
rows keeps all of them there, and is a copy here."""
UNWATCHED = ("SHIRA", "FROD")
"""A real sparse tensor has no storage that could be watched."""
ON_HOST = {"LOHA": 8 * 8}
"""Bytes of real tensors that a device would not hold: a number of eight bytes a block."""
DEPTH = 12
COVERING = ("ADALORA", "LILY", "OSF", "PREFIX_TUNING", "TINYLORA", "VERA", "dora", "kasa", "lily-6", "numbered")
"""Those that are always run."""
MARKED = [pytest.param(name, marks=() if name in COVERING else pytest.mark.slow) for name in CASES]


def subject(depth: int) -> Subject:
    wide = {
        "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
        "num_hidden_layers": depth, "layer_types": None,
    }  # fmt: skip
    config = zoo.config("llama")
    made = type(config)(**{**config.to_dict(), **wide})
    return Subject(
        config_json=made.to_json_string(use_diff=False), task=Task.named("causal-lm"), num_labels=None, problem_type=None,
        dtype="float32", attn_implementation=None, quantization=None,
    )  # fmt: skip


@pytest.mark.parametrize("name", [p for p in MARKED if p.values[0] not in UNWATCHED])
def test_a_type_takes_what_it_really_takes(name: str) -> None:
    method, few = AnyPeft(config=CASES[name]), subject(8)
    without = record_at(few, method, None, SHAPE, step(), whole=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, of kernels that are not built here
        real = peak_bytes(recorded(read_config(json.loads(few.config_json)), "causal-lm", method, weightless=False))
    assert real > 100_000
    excess = peak(without.timeline).num_bytes - real
    assert 0 < excess < 0.05 * real if name in BY_ROWS else excess == -ON_HOST.get(name, 0)


@pytest.mark.parametrize("name", MARKED)
def test_a_type_is_extended_to_the_whole_depth(name: str) -> None:
    method = AnyPeft(config=CASES[name])
    found, whole = (
        record(subject(DEPTH), method, None, SHAPE, step()), record_at(subject(DEPTH), method, None, SHAPE, step(), whole=True)
    )  # fmt: skip
    assert found.trainable_parameters == whole.trainable_parameters > 0
    assert found.total_parameters == whole.total_parameters
    assert peak(found.timeline) == peak(whole.timeline)
