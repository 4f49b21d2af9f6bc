"""LoRA: targets by structure and by name, every variant saved and reloaded by plain PEFT, faults before anything moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from tunekit.attach import load, merge, prepare, prepared, unload
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.methods.lora import Lora
from tunekit.task import Task

CLASSIFY, WRITE = Task.named("sequence-classification"), Task.named("causal-lm")


def adapted(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if "lora_A" in m._modules]


def trained(method: Lora, architecture: str, task: Task) -> nn.Module:
    model = prepare(zoo.build(architecture, task), method, task)
    zoo.train(model, method.parameter_groups(model, 1e-2, 0.0), zoo.batch(task), steps=4)
    return model


# ---------------------------------------------------------------------- targets
@pytest.mark.parametrize(
    ("architecture", "wanted", "per_layer"),
    [
        ("bert", None, 6), ("bert", "all-linear", 6), ("bert", "attention", 4), ("bert", ("query", "value"), 2), ("bert", r".*\.1\..*key", 0.5),
        ("modernbert", None, 4), ("gpt2", None, 4), ("gpt2", "attention", 2), ("llama", None, 7), ("llama", "attention", 4), ("phi3", None, 4),
        ("distilbert", None, 6), ("deberta-v2", "attention", 6),
        ("bert", ("dense",), 3),
    ],
)  # fmt: skip
def test_targets_are_the_linear_layers_of_the_blocks(architecture: str, wanted: Any, per_layer: float) -> None:
    model = prepare(zoo.build(architecture, CLASSIFY, device="meta"), Lora(r=4, target_modules=wanted), CLASSIFY)
    names = adapted(model)
    assert len(names) == 2 * per_layer
    assert not any(
        word in name for name in names for word in ("classifier", "score", "pooler", "embed", "gate.", "head")
    )


def test_fused_experts_learn_on_demand_and_only_then() -> None:
    both = Lora(r=4, target_parameters=("experts.gate_up_proj", "experts.down_proj"))
    plain = prepare(zoo.build("mixtral", WRITE), Lora(r=4), WRITE)
    assert sorted({n.rsplit(".", 1)[-1] for n in adapted(plain)}) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    model = trained(both, "mixtral", WRITE)
    assert sum("experts" in name for name in both.trainable_names(model)) == 2 * 2 * 2


def test_adapters_learn_in_full_precision_on_a_base_in_bf16() -> None:
    model = prepare(zoo.build("llama", WRITE).to(torch.bfloat16), Lora(r=4), WRITE)
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if "lora_" not in n} == {torch.bfloat16}


def test_a_folder_names_the_targets_briefly(tmp_path: Path) -> None:
    prepare(zoo.build("llama", WRITE), Lora(r=4), WRITE).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(saved["target_modules"]) == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    assert saved["task_type"] == "CAUSAL_LM"


# ---------------------------------------------------------------------- variants
VARIANTS = {
    "rslora": Lora(r=4, use_rslora=True),
    "dora": Lora(r=4, use_dora=True),
    "dropout": Lora(r=4, lora_dropout=0.1),
    "gaussian": Lora(r=4, init_lora_weights="gaussian"),
    "orthogonal": Lora(r=4, init_lora_weights="orthogonal"),
    "pissa": Lora(r=4, lora_alpha=4, init_lora_weights="pissa"),
    "pissa-fast": Lora(r=4, lora_alpha=4, init_lora_weights="pissa_niter_2"),
    "pissa-rslora": Lora(r=4, lora_alpha=4, init_lora_weights="pissa", use_rslora=True),
    "pissa-patterns": Lora(r=4, init_lora_weights="pissa", rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 7}),
    "pissa-rslora-patterns": Lora(
        r=4, init_lora_weights="pissa", use_rslora=True, rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 7}
    ),
    "olora": Lora(r=4, init_lora_weights="olora"),
    "olora-dora": Lora(r=4, init_lora_weights="olora", use_dora=True),
    "patterns": Lora(r=4, rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 7}),
    "experts": Lora(r=4, target_parameters=("experts.gate_up_proj", "experts.down_proj")),
    "biases": Lora(r=4, bias="all", target_modules="attention"),
    "more": Lora(r=4, modules_to_save=("norm",)),
}


def home_of(name: str) -> str:
    """An architecture that has what the variant is about."""
    return {"experts": "mixtral", "biases": "bert"}.get(name, "llama")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_reloads_in_plain_peft_with_the_same_answers(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    method, home = VARIANTS[name], home_of(name)
    model = trained(method, home, CLASSIFY)
    expected = zoo.logits(model, zoo.batch(CLASSIFY))
    model.save_pretrained(str(tmp_path))
    plain = PeftModel.from_pretrained(zoo.build(home, CLASSIFY), str(tmp_path))
    ours = load(zoo.build(home, CLASSIFY), tmp_path)
    for again in (plain, ours):
        assert (zoo.logits(again, zoo.batch(CLASSIFY)) - expected).abs().max() <= 1e-5
    before = zoo.logits(zoo.build(home, CLASSIFY), zoo.batch(CLASSIFY))
    assert (expected - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_merges_and_unloads(name: str) -> None:
    method, home = VARIANTS[name], home_of(name)
    base = zoo.build(home, CLASSIFY)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    model = prepare(base, method, CLASSIFY)
    zoo.train(model, method.parameter_groups(model, 1e-2, 0.0), zoo.batch(CLASSIFY))
    assert unload(model) is base
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    model = trained(method, home, CLASSIFY)
    expected = zoo.logits(model, zoo.batch(CLASSIFY))
    assert (zoo.logits(merge(model), zoo.batch(CLASSIFY)) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_allocates_the_same_without_weights(name: str) -> None:
    home = home_of(name)
    shapes = [
        {
            n: (tuple(p.shape), p.dtype, p.requires_grad)
            for n, p in VARIANTS[name].apply(zoo.build(home, CLASSIFY, device=d), CLASSIFY).named_parameters()
        }
        for d in ("cpu", "meta")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_an_initialisation_from_the_weights_does_not_change_the_answers(init: str) -> None:
    before = zoo.logits(zoo.build("llama", CLASSIFY), zoo.batch(CLASSIFY))
    model = prepare(zoo.build("llama", CLASSIFY), Lora(r=4, init_lora_weights=init), CLASSIFY)
    assert (zoo.logits(model, zoo.batch(CLASSIFY)) - before).abs().max() <= 1e-5


def test_pissa_starts_from_the_same_components_whatever_was_drawn_before() -> None:
    first = prepare(zoo.build("llama", WRITE), Lora(r=4, init_lora_weights="pissa_niter_2"), WRITE)
    torch.manual_seed(99)
    base = zoo.build("llama", WRITE)
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    second = prepare(base, Lora(r=4, init_lora_weights="pissa_niter_2"), WRITE)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_pissa_on_transposed_weights_and_olora_refused_there() -> None:
    before = zoo.logits(zoo.build("gpt2", CLASSIFY), zoo.batch(CLASSIFY))
    model = prepare(zoo.build("gpt2", CLASSIFY), Lora(r=4, init_lora_weights="pissa"), CLASSIFY)
    assert (zoo.logits(model, zoo.batch(CLASSIFY)) - before).abs().max() <= 1e-5
    with pytest.raises(InvalidError, match="lora-olora-transposed"):
        prepare(zoo.build("gpt2", CLASSIFY), Lora(r=4, init_lora_weights="olora"), CLASSIFY)


def test_lora_plus_makes_b_learn_faster() -> None:
    method = Lora(r=4, loraplus_lr_ratio=16)
    model = prepare(zoo.build("bert", CLASSIFY), method, CLASSIFY)
    rates = {id(p): g["lr"] for g in method.parameter_groups(model, 1e-3, 0.1) for p in g["params"]}
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert rates[id(p)] == pytest.approx(16e-3 if ".lora_B." in name else 1e-3)


def test_question_answering_keeps_its_segments(tmp_path: Path) -> None:
    """PEFT's class for the task drops `token_type_ids`, so that a trained adapter would answer differently in it."""
    task = Task.named("question-answering")
    model = trained(Lora(r=4), "bert", task)
    inputs = {**zoo.batch(task), "token_type_ids": torch.ones(4, 8, dtype=torch.long)}
    assert not torch.allclose(zoo.logits(model, inputs), zoo.logits(model, zoo.batch(task)))
    model.save_pretrained(str(tmp_path))
    from peft import PeftModel

    again = PeftModel.from_pretrained(zoo.build("bert", task), str(tmp_path))
    assert (zoo.logits(again, inputs) - zoo.logits(model, inputs)).abs().max() <= 1e-5


# ---------------------------------------------------------------------- faults
@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"r": 0}, "lora-r"), ({"r": -1}, "lora-r"), ({"lora_dropout": 1.0}, "lora-dropout"), ({"lora_dropout": -0.1}, "lora-dropout"),
        ({"lora_alpha": 0}, "lora-alpha"), ({"init_lora_weights": "pizza"}, "lora-init"), ({"init_lora_weights": "eva"}, "lora-init"),
        ({"init_lora_weights": "pissa_niter_0"}, "lora-init"), ({"init_lora_weights": "orthogonal", "r": 3}, "lora-orthogonal-rank"),
        ({"loraplus_lr_ratio": 0.0}, "lora-plus-ratio"), ({"rank_pattern": {"query": 0}}, "lora-pattern"),
        ({"target_parameters": ("experts",), "use_dora": True}, "lora-experts"), ({"bias": "some"}, "lora-type"), ({"r": 2.5}, "lora-type"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_when_it_is_made(values: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Lora(**values)
    assert caught.value.codes == (code,)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(InvalidError) as caught:
        Lora(r=0, lora_dropout=2.0, init_lora_weights="x")
    assert caught.value.codes == ("lora-r", "lora-dropout", "lora-init")


@pytest.mark.parametrize(
    ("architecture", "values", "code", "says"),
    [
        ("bert", {"target_modules": ("q_proj",)}, "lora-target-missing", "query"),
        ("bert", {"target_modules": ("query", "qwery")}, "lora-target-missing", "Did you mean `query`"),
        ("bert", {"target_modules": "nothing.*"}, "lora-target-missing", "nothing.*"),
        ("bert", {"target_modules": "(unclosed"}, "lora-target-missing", "(unclosed"),
        ("bert", {"target_modules": ("classifier", "query")}, "lora-target-head", "classifier"),
        ("bert", {"target_modules": ("pooler.dense", "query")}, "lora-target-head", "pooler"),
        ("bert", {"target_modules": ("attention",)}, "lora-target-kind", "BertAttention"),
        ("bert", {"r": 64}, "lora-rank-layer", "rank 64"),
        ("llama", {"r": 17}, "lora-rank-layer", "k_proj"),
        ("bert", {"modules_to_save": ("nope",)}, "lora-module-missing", "nope"),
        ("bert", {"rank_pattern": {"nope": 2}}, "lora-pattern", "nope"),
        ("bert", {"target_parameters": ("experts.down_proj",)}, "lora-target-missing", "experts.down_proj"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused_before_it_is_touched(
    architecture: str, values: dict[str, Any], code: str, says: str
) -> None:
    base = zoo.build(architecture, CLASSIFY)
    before = {name: (id(m), m.training) for name, m in base.named_modules()}
    with pytest.raises(InvalidError) as caught:
        prepare(base, Lora(**values), CLASSIFY)
    assert set(caught.value.codes) == {code}
    assert says in str(caught.value)
    assert {name: (id(m), m.training) for name, m in base.named_modules()} == before
    assert all(p.requires_grad for p in base.parameters())


def test_a_smaller_rank_for_narrow_layers_is_the_way_out() -> None:
    prepare(zoo.build("llama", CLASSIFY), Lora(r=17, rank_pattern={"k_proj": 16, "v_proj": 16}), CLASSIFY)


def test_pissa_on_a_quantised_base_is_refused_before_loading() -> None:
    from tunekit.structure import facts_of

    facts = facts_of(zoo.build("llama", WRITE, device="meta"))
    assert Lora(init_lora_weights="pissa").supports(facts, WRITE, quantization="nf4").code == "lora-init-quantized"
    assert Lora().supports(facts, WRITE, quantization="nf4") is None


# ---------------------------------------------------------------------- what others saved
def test_an_adapter_that_plain_peft_saved_is_known_for_what_it_is(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    theirs = get_peft_model(zoo.build("llama", WRITE), config)
    theirs.save_pretrained(str(tmp_path))
    ours = load(zoo.build("llama", WRITE), tmp_path)
    assert prepared(ours).method == Lora(
        r=2, lora_alpha=6, target_modules=("q_proj", "v_proj"), init_lora_weights=False
    )
    assert prepared(ours).task == WRITE
    assert torch.equal(zoo.logits(ours, zoo.batch(WRITE)), zoo.logits(theirs, zoo.batch(WRITE)))


def test_several_adapters_on_one_base_switch_without_reloading(tmp_path: Path) -> None:
    expected = {}
    for name, rank in (("first", 2), ("second", 4)):
        torch.manual_seed(rank)
        model = prepare(zoo.build("llama", WRITE), Lora(r=rank, init_lora_weights=False), WRITE)
        model.save_pretrained(str(tmp_path / name))
        expected[name] = zoo.logits(model, zoo.batch(WRITE))
    base = zoo.build("llama", WRITE)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    both = load(base, tmp_path / "first", tmp_path / "second")
    assert torch.allclose(zoo.logits(both, zoo.batch(WRITE)), expected["first"], atol=1e-6)
    both.set_adapter("second")
    assert torch.allclose(zoo.logits(both, zoo.batch(WRITE)), expected["second"], atol=1e-6)
    assert unload(both) is base
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())


def test_adapters_of_one_name_are_refused(tmp_path: Path) -> None:
    for place in ("a/same", "b/same", "c"):
        prepare(zoo.build("llama", WRITE), Lora(r=2), WRITE).save_pretrained(str(tmp_path / place))
    with pytest.raises(InvalidError, match="adapters-same-name"):
        load(zoo.build("llama", WRITE), tmp_path / "c", tmp_path / "a/same", tmp_path / "b/same")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_on_a_quantised_base_it_learns_reloads_and_refuses_to_merge(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    shape = zoo.config("llama")
    shape.hidden_size, shape.intermediate_size, shape.head_dim = 64, 128, 16  # the CPU kernel packs blocks of 64
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "base")
    settings = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

    def base() -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=BitsAndBytesConfig(**settings)
        )

    method, inputs = Lora(r=4), zoo.batch(WRITE)
    # Not asked anything before it is trained: bitsandbytes 0.50 packs 4-bit weights on the CPU at the first evaluation,
    # and a packed layer has no backward.
    model = prepare(base(), method, WRITE)
    assert len(adapted(model)) == 14
    zoo.train(model, method.parameter_groups(model, 1e-2, 0.0), inputs)
    expected = zoo.logits(model, inputs)
    model.save_pretrained(str(tmp_path / "learnt"))
    assert (zoo.logits(load(base(), tmp_path / "learnt"), inputs) - expected).abs().max() <= 1e-5
    with pytest.raises(UnsupportedError, match="merge-quantized"):
        merge(model)
    # Packed for the evaluation and unpacked for saving, bitsandbytes' 4-bit scales have been rounded to bf16.
    off = (zoo.logits(unload(model), inputs) - zoo.logits(base(), inputs)).abs().max()
    assert off == 0 if kind == "int8" else off <= 0.05
    with pytest.raises(UnsupportedError, match="lora-init-quantized"):
        prepare(base(), Lora(r=4, init_lora_weights="pissa"), WRITE)
