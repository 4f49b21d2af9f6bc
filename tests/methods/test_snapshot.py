"""A snapshot puts everything back: values, modules, hooks, flags, configurations."""

from __future__ import annotations

import copy

import torch
from torch import nn

import zoo
from tunekit.snapshot import Snapshot
from tunekit.task import Task

TASK = Task.named("sequence-classification")


def test_everything_that_is_put_on_a_model_comes_off_again() -> None:
    model = zoo.build("bert", TASK)
    model.eval()
    layer = model.bert.encoder.layer[0]
    values = {k: v.clone() for k, v in model.state_dict().items()}
    config = model.config.to_dict()
    kind, parameter = type(layer), model.classifier.weight
    before = Snapshot.take(model, copy=["classifier.weight"])

    class Other(kind):
        pass

    layer.__class__ = Other
    layer.extra = nn.Linear(2, 2)
    layer.note = "left behind"
    layer.forward = lambda *a, **k: None
    layer.register_forward_hook(lambda *a: None)
    model.bert.encoder.layer[1] = nn.Identity()
    del model.bert.pooler
    model.register_buffer("counter", torch.zeros(1))
    model.config.use_cache = not model.config.use_cache
    model.config.id2label[0] = "changed"
    model.train()
    model.classifier.weight.data = torch.zeros(2, 32)
    parameter.grad = torch.ones(2, 32)
    for p in model.parameters():
        p.requires_grad_(False)
    assert before.restore() is model
    assert type(layer) is kind
    assert not {"extra", "note", "forward", "counter"} & {*vars(layer), *layer._modules, *vars(model), *model._buffers}
    assert not layer._forward_hooks
    assert model.state_dict().keys() == values.keys()
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
    assert model.classifier.weight is parameter
    assert parameter.grad is None
    assert model.config.to_dict() == config
    assert not model.training
    assert not layer.training
    assert all(p.requires_grad for p in model.parameters())


def test_a_hook_that_was_there_stays_and_can_still_be_removed() -> None:
    model = nn.Linear(2, 2)
    handle = model.register_forward_hook(lambda *a: None)
    before = Snapshot.take(model)
    model.register_forward_hook(lambda *a: None)
    before.restore()
    assert len(model._forward_hooks) == 1
    handle.remove()
    assert not model._forward_hooks


def test_parameters_that_were_not_named_are_not_copied() -> None:
    model = zoo.build("bert", TASK)
    assert Snapshot.take(model).values == ()
    kept = Snapshot.take(model, copy=["classifier.weight"])
    assert sum(v.numel() for _, v in kept.values) == 64


def test_buffers_get_their_values_back() -> None:
    model = nn.BatchNorm1d(3)
    before = Snapshot.take(model)
    buffer = model.running_mean
    model(torch.randn(8, 3))
    assert buffer.any()
    before.restore()
    assert model.running_mean is buffer
    assert not buffer.any()


def test_a_type_that_was_changed_comes_back() -> None:
    model = nn.Linear(2, 2)
    before = Snapshot.take(model, copy=["weight", "bias"])
    model.half()
    before.restore()
    assert model.weight.dtype == torch.float32


def test_tied_weights_stay_tied() -> None:
    model = zoo.build("gpt2", Task.named("causal-lm"))
    before = Snapshot.take(model, copy=["transformer.wte.weight"])
    model.lm_head.weight = nn.Parameter(torch.zeros(100, 32))
    before.restore()
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_copy_of_a_prepared_model_has_a_way_back_of_its_own() -> None:
    from tunekit.attach import prepare, unload
    from tunekit.methods.bitfit import BitFit

    base = zoo.build("bert", TASK)
    model = prepare(base, BitFit(), TASK)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.classifier.bias.add_(1)
    unload(other)
    assert torch.equal(other.classifier.bias, base.classifier.bias)
    assert other.classifier.bias is not base.classifier.bias
    assert "save_pretrained" in vars(model)
    assert "save_pretrained" not in vars(other)


def test_buffers_follow_the_model_to_another_device() -> None:
    model = nn.BatchNorm1d(3)
    before = Snapshot.take(model)
    model._buffers["running_mean"] = model.running_mean.to("meta")  # as `module.to` does: buffers are new tensors there
    before.restore()
    assert model.running_mean.device.type == "meta"
    assert model.running_var.device.type == "cpu"
