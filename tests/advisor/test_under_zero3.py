"""A rank whose host divides weights (ZeRO-3) asks for an estimate alone: nothing that is built for it may be divided."""

from __future__ import annotations

import pytest

pytest.importorskip("deepspeed")

from tunekit.advisor.weightless import build, count_parameters
from tunekit.task import Task

TINY = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 100,
}  # fmt: skip


def test_a_model_without_weights_is_built_whole_beside_a_live_zero3_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import deepspeed
    from transformers.integrations import deepspeed as host

    def divides(*args: object, **kwargs: object) -> None:
        raise AssertionError("the host divides what is built")

    monkeypatch.setattr(deepspeed.zero, "Init", divides)
    config = host.HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    try:
        assert host.is_deepspeed_zero3_enabled()
        assert count_parameters(build(TINY, Task.named("causal-lm"))) == 8400
        assert host.is_deepspeed_zero3_enabled(), "the host's own configuration is left as it was"
    finally:
        host.unset_hf_deepspeed_config()
        del config
