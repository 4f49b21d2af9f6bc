"""IA3: factors where the paper has them, found by structure; folders that plain PEFT reads; faults before anything moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from tunekit.attach import load, merge, prepare, prepared
from tunekit.errors import InvalidError
from tunekit.methods import _adapted
from tunekit.methods.ia3 import IA3
from tunekit.task import TASKS, Task

CLASSIFY, WRITE = Task.named("sequence-classification"), Task.named("causal-lm")


def factors(model: nn.Module) -> dict[str, bool]:
    """Names of the layers that have factors, and whether they have them on the input."""
    return {
        n.removeprefix("base_model.model."): m.is_feedforward for n, m in model.named_modules() if "ia3_l" in m._modules
    }


@pytest.mark.parametrize(
    ("architecture", "outputs", "inputs"),
    [
        ("bert", {"key", "value"}, {"output.dense"}), ("roberta", {"key", "value"}, {"output.dense"}), ("albert", {"key", "value"}, {"ffn_output"}),
        ("deberta-v2", {"key_proj", "value_proj"}, {"output.dense"}), ("distilbert", {"k_lin", "v_lin"}, {"ffn.lin2"}),
        ("modernbert", {"Wqkv"}, {"mlp.Wo"}), ("gpt2", {"c_attn"}, {"mlp.c_proj"}), ("llama", {"k_proj", "v_proj"}, {"down_proj"}),
        ("qwen3", {"k_proj", "v_proj"}, {"down_proj"}), ("gemma3", {"k_proj", "v_proj"}, {"down_proj"}), ("phi3", {"qkv_proj"}, {"down_proj"}),
        ("mixtral", {"k_proj", "v_proj"}, set()), ("t5", {"k", "v"}, {"wo"}), ("bart", {"k_proj", "v_proj"}, {"fc2"}),
    ],
)  # fmt: skip
def test_factors_sit_on_keys_values_and_the_inner_feedforward(
    architecture: str, outputs: set[str], inputs: set[str]
) -> None:
    found = factors(prepare(zoo.build(architecture, CLASSIFY, device="meta"), IA3(), CLASSIFY))
    assert {n.rsplit(".", 1)[-1] for n, on_input in found.items() if not on_input} == outputs
    assert all(any(n.endswith(f".{i}") for i in inputs) for n, on_input in found.items() if on_input)
    assert {i for i in inputs if any(n.endswith(f".{i}") for n in found)} == inputs
    assert not any("attention.output" in n for n in found)


def test_an_encoder_decoder_has_factors_on_both_sides_and_in_between() -> None:
    found = factors(prepare(zoo.build("t5", Task.named("seq2seq"), device="meta"), IA3(), "seq2seq"))
    assert len(found) == 2 * (2 + 1) + 2 * (2 + 2 + 1)


def test_an_attention_whose_names_say_nothing_gives_what_widens_or_all_but_the_last() -> None:
    model = zoo.build("llama", WRITE, device="meta")
    names = {"q_proj": "alpha", "k_proj": "beta", "v_proj": "gamma", "o_proj": "omega"}
    for layer in model.model.layers:
        for old, new in names.items():
            layer.self_attn.add_module(new, layer.self_attn._modules.pop(old))
    found = {n.rsplit(".", 1)[-1] for n in _adapted.keys_and_values(model)}
    assert found == {"alpha", "beta", "gamma"}
    for layer in model.model.layers:
        for name in ("alpha", "beta", "gamma"):
            del layer.self_attn._modules[name]
        layer.self_attn.add_module("mixed", nn.Linear(32, 64, device="meta"))
        layer.self_attn.add_module("omega", layer.self_attn._modules.pop("omega"))
    assert {n.rsplit(".", 1)[-1] for n in _adapted.keys_and_values(model)} == {"mixed"}


def test_a_square_feedforward_still_has_one_last_layer() -> None:
    from transformers import AutoModelForCausalLM

    config = zoo.config("llama")
    config.intermediate_size = config.hidden_size
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert {n.rsplit(".", 1)[-1] for n in _adapted.second_feedforward(model)} == {"down_proj"}


def test_the_model_starts_as_it_was() -> None:
    base, inputs = zoo.build("llama", WRITE), zoo.batch(WRITE)
    expected = zoo.logits(base, inputs)
    assert torch.equal(zoo.logits(prepare(base, IA3(), WRITE), inputs), expected)


def test_far_fewer_parameters_learn_than_with_a_small_lora() -> None:
    from tunekit.methods.lora import Lora

    def count(method: Any) -> int:
        model = prepare(zoo.build("llama", WRITE, device="meta"), method, WRITE)
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    assert 10 * count(IA3()) < count(Lora(r=8))


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "t5"])
def test_a_folder_names_few_targets_where_it_can_and_plain_peft_reads_it(architecture: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = prepare(zoo.build(architecture, CLASSIFY), IA3(), CLASSIFY)
    zoo.train(model, IA3().parameter_groups(model, 0.1, 0.0), zoo.batch(CLASSIFY))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(saved["feedforward_modules"]) <= set(saved["target_modules"])
    assert len(saved["target_modules"]) == {"llama": 3, "t5": 3}.get(architecture, len(saved["target_modules"]))
    again = PeftModel.from_pretrained(zoo.build(architecture, CLASSIFY), str(tmp_path))
    assert factors(again) == factors(model)
    assert torch.allclose(
        zoo.logits(again, zoo.batch(CLASSIFY)), zoo.logits(model, zoo.batch(CLASSIFY)), atol=1e-6, rtol=0
    )


def test_what_plain_peft_trained_is_known_as_ia3(tmp_path: Path) -> None:
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    get_peft_model(zoo.build("llama", WRITE), config).save_pretrained(tmp_path)
    found = prepared(load(zoo.build("llama", WRITE), tmp_path)).method
    assert found == IA3(target_modules=("down_proj", "k_proj"), feedforward_modules=("down_proj",))


@pytest.mark.parametrize("name", [t.name for t in TASKS])
def test_factors_and_head_merge_into_the_plain_model(name: str) -> None:
    task = Task.named(name)
    model = prepare(zoo.build({"causal-lm": "gpt2", "seq2seq": "bart"}.get(name, "bert"), task), IA3(), task)
    zoo.train(model, IA3().parameter_groups(model, 0.1, 0.0), zoo.batch(task))
    expected = zoo.logits(model, zoo.batch(task))
    plain = merge(model)
    assert not any("ia3" in n or "modules_to_save" in n for n in plain.state_dict())
    assert torch.allclose(zoo.logits(plain, zoo.batch(task)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"target_modules": ("q_prj",)}, "ia3-target-missing"), ({"target_modules": r".*nothing"}, "ia3-target-missing"),
        ({"feedforward_modules": ("dwn_proj",)}, "ia3-target-missing"), ({"target_modules": ("score",)}, "ia3-target-head"),
        ({"target_modules": ("self_attn",)}, "ia3-target-kind"), ({"modules_to_save": ("nowhere",)}, "ia3-module-missing"),
        ({"target_modules": ("k_proj",), "feedforward_modules": ("down_proj",)}, "ia3-feedforward"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be_are_refused_and_the_model_is_untouched(values: dict[str, Any], code: str) -> None:
    base = zoo.build("llama", CLASSIFY)
    before = list(base.state_dict())
    with pytest.raises(InvalidError) as caught:
        prepare(base, IA3(**values), CLASSIFY)
    assert code in caught.value.codes
    assert list(base.state_dict()) == before


def test_targets_by_word_by_end_and_by_pattern() -> None:
    def names(**values: Any) -> dict[str, bool]:
        return factors(prepare(zoo.build("llama", WRITE, device="meta"), IA3(**values), WRITE))

    assert len(names(target_modules="attention")) == 2 * 4
    assert len(names(target_modules="all-linear")) == 2 * 7
    assert {n for n, on_input in names(target_modules="all-linear").items() if on_input} == {
        f"model.layers.{i}.mlp.down_proj" for i in range(2)
    }
    assert names(target_modules=("v_proj",)) == {f"model.layers.{i}.self_attn.v_proj": False for i in range(2)}
    assert len(names(target_modules=r".*\.0\..*(k|v)_proj")) == 2
    assert not any(names(feedforward_modules=()).values())


def test_an_end_that_the_head_shares_means_the_layers_outside_it() -> None:
    model = prepare(zoo.build("bert", CLASSIFY, device="meta"), IA3(target_modules=("dense",)), CLASSIFY)
    assert len(factors(model)) == 2 * 3
    assert not any("pooler" in n for n in factors(model))
