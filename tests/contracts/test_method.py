"""What every method promises on every architecture and task it does not refuse; methods are found by themselves."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from tunekit.attach import load, merge, prepare, prepared, unload
from tunekit.contracts import Method
from tunekit.errors import TunekitError, UnsupportedError
from tunekit.task import TASKS, Task

METHODS = zoo.methods()
PAIRS = [
    ("bert", "sequence-classification"), ("bert", "multiple-choice"), ("gpt2", "token-classification"), ("mixtral", "causal-lm"),
    ("t5", "seq2seq"), ("bart", "question-answering"),
]  # fmt: skip
"""Every task and every kind of architecture once; the other pairs run with the slow tests."""
EVERY_PAIR = [(a, t.name) for a in zoo.ARCHITECTURES for t in TASKS if zoo.fits(a, t) and (a, t.name) not in PAIRS]


@dataclass(frozen=True)
class Cell:
    method: Method
    architecture: str
    task: Task

    def base(self, seed: int = 0) -> nn.Module:
        return zoo.build(self.architecture, self.task, seed=seed)

    def prepared(self) -> nn.Module:
        """The method on the base, or a skip that names the refusal."""
        base = self.base()
        try:
            return prepare(base, self.method, self.task)
        except UnsupportedError as e:
            pytest.skip(f"refused: {e}")

    def trained(self) -> nn.Module:
        model = self.prepared()
        zoo.train(model, self.method.parameter_groups(model, 1e-2, 0.01), zoo.batch(self.task))
        return model


@pytest.fixture(
    params=[
        *(pytest.param((m, a, t), id=f"{m}-{a}-{t}") for m in METHODS for a, t in PAIRS),
        *(pytest.param((m, a, t), id=f"{m}-{a}-{t}", marks=pytest.mark.slow) for m in METHODS for a, t in EVERY_PAIR),
    ]
)
def cell(request: pytest.FixtureRequest) -> Cell:
    slug, architecture, task = request.param
    return Cell(METHODS[slug], architecture, Task.named(task))


def parameters(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


_TENSORS = ("_modules", "_parameters", "_buffers")


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a method could leave behind."""
    return {
        "values": {k: v.clone() for k, v in model.state_dict().items()},
        "modules": {name: (id(m), type(m)) for name, m in model.named_modules()},
        "attributes": {
            name: {k: repr(v)[:300] for k, v in vars(m).items() if k not in _TENSORS}
            for name, m in model.named_modules()
        },
        "wants_gradient": {name: p.requires_grad for name, p in model.named_parameters()},
        "config": model.config.to_dict(),
    }


def assert_same_state(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    assert list(after["values"]) == list(before["values"])
    assert all(torch.equal(after["values"][k], before["values"][k]) for k in before["values"])
    assert after["modules"] == before["modules"]
    assert after["wants_gradient"] == before["wants_gradient"]
    assert after["config"] == before["config"]
    assert after["attributes"] == before["attributes"]
    assert all(p.grad is None for p in model.parameters())


def test_exactly_the_declared_parameters_learn(cell: Cell) -> None:
    model = cell.prepared()
    declared = cell.method.trainable_names(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    seen = zoo.train(model, cell.method.parameter_groups(model, 1e-2, 0.01), zoo.batch(cell.task))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert seen["without_gradient"] == set()
    assert changed <= declared
    assert declared - changed <= declared - seen["moved"]
    assert {plain_name(n) for n in declared - seen["moved"]} <= idle_parameters(cell.architecture, cell.task)
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())


def plain_name(name: str) -> str:
    """The name that a parameter of the base has without PEFT's wrappers; what a method added keeps a name of its own."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")


@cache
def idle_parameters(architecture: str, task: Task) -> frozenset[str]:
    """The base's own parameters whose gradient is nothing but rounding, even when everything learns."""
    model = zoo.build(architecture, task)
    model(**zoo.batch(task))["loss"].backward()
    sizes = {n: float(p.grad.abs().max()) if p.grad is not None else 0.0 for n, p in model.named_parameters()}
    return frozenset(n for n, size in sizes.items() if size <= 1e-6 * max(sizes.values()))


@pytest.mark.parametrize(("architecture", "task"), PAIRS)
def test_next_to_nothing_is_idle_in_a_base(architecture: str, task: str) -> None:
    """Such as the bias of a multiple-choice head, which moves every choice alike, and that of attention's keys."""
    found = idle_parameters(architecture, Task.named(task))
    assert ("classifier.bias" in found) == (task == "multiple-choice")
    assert len(found) <= 0.2 * len(parameters(zoo.build(architecture, Task.named(task), device="meta")))


def test_the_head_always_learns(cell: Cell) -> None:
    from tunekit.structure import head_parameters

    base = cell.base()
    heads = head_parameters(base, cell.task)
    model = cell.prepared()
    assert heads <= {plain_name(n) for n in cell.method.trainable_names(model)}
    assert bool(heads) == cell.task.has_head


def test_saved_and_loaded_it_answers_the_same(cell: Cell, tmp_path: Path) -> None:
    model, inputs = cell.trained(), zoo.batch(cell.task)
    model.save_pretrained(tmp_path)
    again = load(cell.base(), tmp_path)
    expected = zoo.logits(model, inputs)
    assert (zoo.logits(again, inputs) - expected).abs().max() <= 1e-5
    assert not torch.equal(zoo.logits(cell.base(), inputs), expected)
    assert prepared(again).task == cell.task
    # What learnt and is still there learns again, and nothing else; a folded reparameterisation is not there any more.
    learnt, learns = cell.method.trainable_names(model), prepared(again).method.trainable_names(again)
    assert learnt & parameters(again) == learns & parameters(model)
    assert parameters(again) - parameters(model) <= learns
    # The method that comes back can be put on a fresh base like any other.
    fresh = prepare(cell.base(), prepared(again).method, cell.task)
    assert parameters(fresh) == parameters(again)
    assert prepared(again).method.trainable_names(fresh) == learns


def test_what_peft_can_read_answers_the_same_in_plain_peft(cell: Cell, tmp_path: Path) -> None:
    from peft import PeftModel

    model, inputs = cell.trained(), zoo.batch(cell.task)
    cell.method.save(model, tmp_path)
    if not (tmp_path / "adapter_config.json").is_file():
        pytest.skip(f"{cell.method.slug} does not save in PEFT's format")
    again = PeftModel.from_pretrained(cell.base(), str(tmp_path))
    expected, found = zoo.logits(model, inputs), zoo.logits(again, inputs)
    real = found[..., -expected.shape[-2] :, :]  # PEFT also answers for the virtual tokens of a soft prompt
    assert (real - expected).abs().max() <= 1e-5


def test_unloaded_the_base_is_what_it_was_bit_for_bit(cell: Cell) -> None:
    base = cell.base()
    before = state_of(base)
    try:
        model = prepare(base, cell.method, cell.task)
    except UnsupportedError as e:
        assert_same_state(base, before)
        pytest.skip(f"refused: {e}")
    zoo.train(model, cell.method.parameter_groups(model, 1e-2, 0.01), zoo.batch(cell.task))
    assert unload(model) is base
    assert_same_state(base, before)
    prepare(base, cell.method, cell.task)


def test_a_loaded_adapter_unloads_too(cell: Cell, tmp_path: Path) -> None:
    cell.trained().save_pretrained(tmp_path)
    base = cell.base(seed=7)
    before = state_of(base)
    assert unload(load(base, tmp_path)) is base
    assert_same_state(base, before)


def test_merged_it_answers_as_it_did_live(cell: Cell) -> None:
    model, inputs = cell.trained(), zoo.batch(cell.task)
    expected = zoo.logits(model, inputs)
    if not cell.method.merges:
        with pytest.raises(UnsupportedError, match="method-no-merge"):
            merge(model)
        return
    plain = merge(model)
    assert type(plain) is type(cell.base())
    assert plain.state_dict().keys() == cell.base().state_dict().keys()
    assert (zoo.logits(plain, inputs) - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert prepared(plain) is None
    assert all(p.requires_grad for p in plain.parameters())


def test_on_weightless_tensors_it_allocates_the_same(cell: Cell) -> None:
    real = cell.prepared()
    weightless = cell.method.apply(zoo.build(cell.architecture, cell.task, device="meta"), cell.task)

    def outline(model: nn.Module) -> dict[str, Any]:
        return {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in model.named_parameters()}

    assert outline(weightless) == outline(real)
    assert all(p.device.type == "meta" for p in weightless.parameters())


def test_every_trainable_parameter_is_in_one_group(cell: Cell) -> None:
    from transformers import Trainer

    model = cell.prepared()
    groups = cell.method.parameter_groups(model, 1e-3, 0.1)
    grouped = [id(p) for g in groups for p in g["params"]]
    own = {name: id(p) for name, p in model.named_parameters()}
    assert sorted(grouped) == sorted(own[name] for name in cell.method.trainable_names(model))
    assert all(g["lr"] >= 0 and g["params"] for g in groups)
    undecayed = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    never = set(own) - set(Trainer.get_decay_parameter_names(None, model))
    assert {own[n] for n in never} & set(grouped) <= undecayed


def test_when_applying_fails_the_model_is_untouched(cell: Cell) -> None:
    kind = type(cell.method)

    class Failing(kind):  # type: ignore[valid-type, misc]
        def apply(self, model: nn.Module, task: Task) -> nn.Module:
            kind.apply(self, model, task)
            with torch.no_grad():
                for p in model.parameters():
                    if p.requires_grad:
                        p.add_(1)
            raise RuntimeError("half way")

    fields = {f.name: getattr(cell.method, f.name) for f in dataclasses.fields(cell.method) if f.init}
    base = cell.base()
    before = state_of(base)
    with pytest.raises((RuntimeError, UnsupportedError)):
        prepare(base, Failing(**fields), cell.task)
    assert_same_state(base, before)


def test_a_second_method_is_refused(cell: Cell) -> None:
    model = cell.prepared()
    with pytest.raises(UnsupportedError, match="model-already-prepared"):
        prepare(model, cell.method, cell.task)
    assert prepared(model).method == cell.method


def test_gradients_are_the_same_with_activation_checkpointing(cell: Cell) -> None:
    if not cell.base().supports_gradient_checkpointing:
        pytest.skip("this architecture cannot checkpoint")
    plain = cell.trained()
    checkpointed = copy.deepcopy(plain)
    enable = (
        getattr(checkpointed, "activation_checkpointing_enable", None) or checkpointed.gradient_checkpointing_enable
    )
    enable()
    inputs = zoo.batch(cell.task)
    found = []
    for model in (plain, checkpointed):
        model.train()
        model(**inputs)["loss"].backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][k], found[1][k], atol=1e-6) for k in found[0])


def test_a_language_model_still_generates(cell: Cell) -> None:
    if cell.task.has_head:
        pytest.skip("it writes no text")
    model = cell.trained()
    model.eval()
    ids = zoo.batch(cell.task)["input_ids"][1:2]
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert out.shape[1] > (ids.shape[1] if cell.task.name == "causal-lm" else 1)


@pytest.mark.parametrize("slug", METHODS)
def test_plain_values_make_the_same_method_again(slug: str) -> None:
    method = METHODS[slug]
    assert type(method).from_dict(method.to_dict()) == method
    assert method.to_dict()["kind"] == type(method).slug


@pytest.mark.parametrize("slug", METHODS)
def test_an_unknown_field_is_refused_with_the_nearest(slug: str) -> None:
    with pytest.raises(TunekitError, match="unknown-field"):
        type(METHODS[slug]).from_dict({**METHODS[slug].to_dict(), "no_such_field": 1})
