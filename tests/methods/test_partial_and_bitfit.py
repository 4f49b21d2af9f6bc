"""Partial fine-tuning and BitFit: which parameters learn, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

import zoo
from tunekit.attach import prepare
from tunekit.contracts import Method
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.methods.bitfit import BitFit
from tunekit.methods.full import Full
from tunekit.methods.partial import Partial
from tunekit.structure import facts_of
from tunekit.task import Task

CLASSIFY, SEQ2SEQ, WRITE = (Task.named(n) for n in ("sequence-classification", "seq2seq", "causal-lm"))


def learnt(method: Method, architecture: str, task: Task) -> set[str]:
    model = prepare(zoo.build(architecture, task, device="meta"), method, task)
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_last_layer_of_an_encoder_learns_with_its_head() -> None:
    names = learnt(Partial(last_layers=1), "bert", CLASSIFY)
    assert {n.split(".layer.")[1][0] for n in names if ".layer." in n} == {"1"}
    assert {n.split(".")[0] for n in names if ".layer." not in n} == {"bert", "classifier"}
    assert len(names) == 16 + 4


def test_the_final_norm_of_a_decoder_learns_and_its_output_layer_does_not() -> None:
    names = learnt(Partial(last_layers=1), "llama", WRITE)
    assert "model.norm.weight" in names
    assert not any("embed" in n or "lm_head" in n for n in names)


def test_the_last_layers_of_seq2seq_are_the_decoders() -> None:
    names = learnt(Partial(last_layers=1), "t5", SEQ2SEQ)
    assert all(n.startswith(("decoder.block.1.", "decoder.final_layer_norm")) for n in names)


def test_patterns_alone_and_beside_layers() -> None:
    only = learnt(Partial(last_layers=None, patterns=(r"layer\.0\.attention",)), "bert", CLASSIFY)
    assert all("layer.0.attention" in n or "pooler" in n or "classifier" in n for n in only)
    both = learnt(Partial(last_layers=1, patterns=(r"layer\.0\.attention",)), "bert", CLASSIFY)
    assert both == only | learnt(Partial(last_layers=1), "bert", CLASSIFY)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"last_layers": 0}, "partial-layers"), ({"last_layers": -2}, "partial-layers"), ({"last_layers": None}, "partial-nothing"),
        ({"patterns": ("(",)}, "partial-pattern"), ({"last_layers": "two"}, "partial-type"), ({"patterns": "layer"}, "partial-type"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_when_it_is_made(values: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Partial(**values)
    assert caught.value.codes == (code,)


@pytest.mark.parametrize(
    ("architecture", "values", "code"),
    [
        ("bert", {"last_layers": 3}, "partial-layers"), ("t5", {"last_layers": 3}, "partial-layers"), ("albert", {"last_layers": 2}, "partial-shared-layers"),
        ("bert", {"patterns": ("layer.7",)}, "partial-pattern"),
    ],
)  # fmt: skip
def test_what_the_model_has_not_is_refused(architecture: str, values: dict[str, Any], code: str) -> None:
    with pytest.raises((InvalidError, UnsupportedError)) as caught:
        prepare(zoo.build(architecture, CLASSIFY), Partial(**values), CLASSIFY)
    assert caught.value.codes == (code,)


def test_bitfit_trains_biases_and_the_head_only() -> None:
    names = learnt(BitFit(), "gpt2", CLASSIFY)
    assert {n for n in names if not n.endswith(".bias")} == {"score.weight"}
    assert len(names) == 2 * 6 + 1 + 1


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gemma3", "qwen3", "phi3", "modernbert"])
def test_bitfit_is_refused_where_nothing_has_a_bias(architecture: str) -> None:
    facts = facts_of(zoo.build(architecture, CLASSIFY, device="meta"))
    finding = BitFit().supports(facts, CLASSIFY)
    assert finding is not None
    assert finding.code == "bitfit-no-bias"
    assert "lora" in finding.fix


@pytest.mark.parametrize("method", [Full(), Partial(), BitFit()])
def test_methods_that_move_the_base_refuse_a_quantised_one(method: Method) -> None:
    facts = facts_of(zoo.build("bert", CLASSIFY, device="meta"))
    assert method.supports(facts, CLASSIFY) is None
    finding = method.supports(facts, CLASSIFY, quantization="nf4")
    assert finding is not None
    assert finding.code == "method-quantized"


def test_full_trains_everything_that_is_not_fixed_by_design() -> None:
    from transformers import PegasusConfig, PegasusForConditionalGeneration

    base = zoo.build("bert", CLASSIFY)
    base.bert.encoder.requires_grad_(False)
    assert all(p.requires_grad for p in prepare(base, Full(), CLASSIFY).parameters())
    config = PegasusConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, vocab_size=100, max_position_embeddings=64,
    )  # fmt: skip
    model = prepare(PegasusForConditionalGeneration(config), Full(), SEQ2SEQ)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"]
