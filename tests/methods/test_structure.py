"""Facts read off module trees, on every architecture of the zoo and every auto class that it has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zoo
from tunekit.structure import (
    attention_names,
    base_model,
    base_name,
    bias_names,
    blocks,
    decayed_names,
    expert_names,
    head_modules,
    linear_names,
    norm_names,
    tasks_of,
    unwrapped,
)
from tunekit.task import TASKS, Task

PAIRS = [(a, t) for a in zoo.ARCHITECTURES for t in TASKS if zoo.fits(a, t)]
every_pair = pytest.mark.parametrize(("architecture", "task"), PAIRS, ids=[f"{a}-{t}" for a, t in PAIRS])


@every_pair
def test_base_head_and_layers_are_told_apart(architecture: str, task: Task) -> None:
    model = zoo.build(architecture, task, device="meta")
    heads = head_modules(model, task)
    assert bool(heads) == task.has_head
    assert task in tasks_of(model)
    assert all(next(model.get_submodule(h).parameters(), None) is not None for h in heads)
    inside = [f"{name}." for name, _ in blocks(model)]
    assert inside
    assert all(n.startswith(tuple(inside)) for n in linear_names(model))
    assert not any(n.startswith(tuple(heads)) for n in linear_names(model) if heads)
    assert set(attention_names(model)) < set(linear_names(model)) or architecture == "mixtral"
    layers = sum(len(stack) for _, stack in blocks(model))
    assert layers == (1 if architecture == "albert" else 2 if len(inside) == 1 else 4)


@every_pair
def test_a_head_is_what_pretrained_weights_lack(architecture: str, task: Task) -> None:
    """The tensors of a task model that its bare base has no counterpart of, poolers inside the base apart."""
    from transformers import AutoModel

    if not task.has_head:
        pytest.skip("a language model's output layer is pretrained")
    model = zoo.build(architecture, task, device="meta")
    with torch.device("meta"):
        bare = set(AutoModel.from_config(zoo.config(architecture)).state_dict())
    prefix = f"{base_name(model)}." if base_name(model) else ""
    new = {n for n, _ in model.named_parameters() if n.removeprefix(prefix) not in bare}
    heads = {n for n, _ in model.named_parameters() if n.startswith(tuple(f"{h}." for h in head_modules(model, task)))}
    assert new <= heads
    assert all("pooler" in n for n in heads - new)


@every_pair
def test_decay_is_the_trainers(architecture: str, task: Task) -> None:
    from transformers import Trainer

    model = zoo.build(architecture, task, device="meta")
    decayed = decayed_names(model)
    assert decayed == frozenset(Trainer.get_decay_parameter_names(None, model))
    assert not decayed & {*bias_names(model)}


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        ("bert", 2 * 8 + 1), ("gpt2", 2 * 6 + 1), ("bart", 44), ("deberta-v2", 21), ("llama", 0), ("mixtral", 0), ("gemma3", 0), ("modernbert", 0),
        ("qwen3", 0), ("phi3", 0),
    ],
)  # fmt: skip
def test_biases_of_the_base(architecture: str, count: int) -> None:
    task = Task.named("sequence-classification")
    model = zoo.build(architecture, task, device="meta")
    own = [n for n in bias_names(base_model(model)) if "pooler" not in n]
    assert len(own) == count


def test_relative_positions_are_no_bias() -> None:
    assert bias_names(zoo.build("t5", Task.named("seq2seq"), device="meta")) == ()


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_norms_are_vectors_of_norm_layers(architecture: str) -> None:
    model = zoo.build(architecture, Task.named("sequence-classification"), device="meta")
    own = dict(model.named_parameters())
    names = norm_names(model)
    assert names
    assert all(own[n].ndim == 1 for n in names)
    ones = {
        n
        for n, p in zoo.build(architecture, Task.named("sequence-classification")).named_parameters()
        if n in names and n.endswith("weight") and (p == 1).all()
    }
    assert ones or architecture == "gemma3"  # Gemma's scale is stored less 1


def test_routers_are_left_out_and_experts_found() -> None:
    model = zoo.build("mixtral", Task.named("causal-lm"), device="meta")
    assert not any("gate" in n for n in linear_names(model))
    assert sorted(n.rsplit(".", 1)[-1] for n in expert_names(model)) == [
        "down_proj",
        "down_proj",
        "gate_up_proj",
        "gate_up_proj",
    ]


def test_a_linear_router_and_a_shared_gate_are_left_out_by_structure() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(8, 4)
            self.shared_gate = nn.Linear(8, 1)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(4))
            self.out = nn.Linear(8, 8)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Block(), Block()])

    names = linear_names(Model())
    assert [n for n in names if n.startswith("layers.0")] == [
        *(f"layers.0.experts.{i}.0" for i in range(4)),
        "layers.0.out",
    ]


def test_wrappers_are_looked_through() -> None:
    inner = zoo.build("bert", Task.named("token-classification"), device="meta")
    wrapped = nn.DataParallel(inner)
    assert unwrapped(wrapped) is inner
    assert base_name(wrapped) == "bert"
    assert head_modules(wrapped, Task.named("token-classification")) == ("classifier",)


@pytest.mark.parametrize(
    ("architecture", "task", "heads"),
    [
        ("bert", "sequence-classification", ("bert.pooler", "classifier")), ("bert", "multiple-choice", ("bert.pooler", "classifier")),
        ("bert", "token-classification", ("classifier",)), ("roberta", "sequence-classification", ("classifier",)),
        ("roberta", "multiple-choice", ("roberta.pooler", "classifier")), ("deberta-v2", "sequence-classification", ("pooler", "classifier")),
        ("distilbert", "sequence-classification", ("pre_classifier", "classifier")), ("modernbert", "question-answering", ("head", "classifier")),
        ("electra", "multiple-choice", ("sequence_summary", "classifier")), ("llama", "sequence-classification", ("score",)),
        ("gpt2", "question-answering", ("qa_outputs",)), ("t5", "sequence-classification", ("classification_head",)),
        ("t5", "question-answering", ("qa_outputs",)), ("bart", "sequence-classification", ("classification_head",)),
    ],
)  # fmt: skip
def test_a_pooler_that_feeds_the_head_belongs_to_it(architecture: str, task: str, heads: tuple[str, ...]) -> None:
    assert head_modules(zoo.build(architecture, Task.named(task), device="meta"), Task.named(task)) == heads


def test_a_shell_around_a_decoder_is_not_its_base() -> None:
    from tunekit.structure import base_name

    assert base_name(zoo.build("bart", Task.named("causal-lm"))) == "model.decoder"
    assert base_name(zoo.build("bart", Task.named("seq2seq"))) == "model"
