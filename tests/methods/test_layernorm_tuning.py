"""LayerNorm tuning: every norm outside the head learns, and nothing else; folders that plain PEFT reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from tunekit.attach import load, merge, prepare, prepared
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.methods.layernorm_tuning import LayerNormTuning
from tunekit.structure import head_modules
from tunekit.task import TASKS, Task

CLASSIFY, WRITE = Task.named("sequence-classification"), Task.named("causal-lm")


def learnt(architecture: str, task: Task) -> set[str]:
    model = prepare(zoo.build(architecture, task, device="meta"), LayerNormTuning(), task)
    return {n.removeprefix("base_model.model.") for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_all_norms_and_the_head_learn_and_nothing_else(architecture: str) -> None:
    base = zoo.build(architecture, CLASSIFY, device="meta")
    heads = tuple(f"{h}." for h in head_modules(base, CLASSIFY))
    norms = {
        n.replace(f".{end}", f".ln_tuning_layers.default.{end}")
        for n, p in base.named_parameters()
        if p.ndim == 1 and not n.startswith(heads) and "norm" in type(base.get_submodule(n.rpartition(".")[0])).__name__.lower()
        for end in [n.rpartition(".")[2]]
    }  # fmt: skip
    found = learnt(architecture, CLASSIFY)
    assert {n for n in found if "modules_to_save" not in n} == norms
    assert norms
    saved = {n.replace("modules_to_save.default.", "") for n in found if "modules_to_save" in n}
    assert saved == {n for n, _ in base.named_parameters() if n.startswith(heads)}


def test_a_decoders_last_norm_and_its_norms_of_queries_and_keys_learn_too() -> None:
    names = {n.split(".ln_tuning_layers")[0].rsplit(".", 1)[-1] for n in learnt("qwen3", WRITE)}
    assert names == {"input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm"}


@pytest.mark.parametrize("name", [t.name for t in TASKS])
def test_norms_and_head_merge_into_the_plain_model(name: str) -> None:
    task, method = Task.named(name), LayerNormTuning()
    architecture = {"causal-lm": "llama", "seq2seq": "t5"}.get(name, "bert")
    model = prepare(zoo.build(architecture, task), method, task)
    zoo.train(model, method.parameter_groups(model, 0.1, 0.0), zoo.batch(task))
    expected = zoo.logits(model, zoo.batch(task))
    plain = merge(model)
    assert plain.state_dict().keys() == zoo.build(architecture, task).state_dict().keys()
    assert torch.equal(zoo.logits(plain, zoo.batch(task)), expected)


def test_the_base_keeps_its_norms_while_the_copies_learn() -> None:
    base = zoo.build("bert", CLASSIFY)
    own = {n: p for n, p in base.named_parameters() if "LayerNorm" in n}
    before = {n: p.detach().clone() for n, p in own.items()}
    model = prepare(base, LayerNormTuning(), CLASSIFY)
    zoo.train(model, LayerNormTuning().parameter_groups(model, 0.1, 0.0), zoo.batch(CLASSIFY))
    assert all(torch.equal(p, before[n]) for n, p in own.items())


def test_what_plain_peft_trained_is_known(tmp_path: Path) -> None:
    from peft import LNTuningConfig, get_peft_model

    config = LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM")
    model = get_peft_model(zoo.build("llama", WRITE), config)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.mul_(1.5)
    model.save_pretrained(tmp_path)
    again = load(zoo.build("llama", WRITE), tmp_path)
    assert prepared(again).method == LayerNormTuning()
    assert torch.equal(zoo.logits(again, zoo.batch(WRITE)), zoo.logits(model, zoo.batch(WRITE)))


def test_a_model_without_norms_is_refused_with_the_nearest_and_untouched() -> None:
    base = zoo.build("llama", WRITE)
    base.model.norm = nn.Identity()
    for layer in base.model.layers:
        layer.input_layernorm, layer.post_attention_layernorm = nn.Identity(), nn.Identity()
    before = list(base.state_dict())
    with pytest.raises(UnsupportedError, match="ia3") as caught:
        prepare(base, LayerNormTuning(), WRITE)
    assert caught.value.codes == ("layernorm-tuning-no-norm",)
    assert list(base.state_dict()) == before


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidError, match="layernorm-tuning-module-missing"):
        prepare(zoo.build("bert", CLASSIFY), LayerNormTuning(modules_to_save=("nowhere",)), CLASSIFY)
