"""Bottleneck adapters: where they sit in every architecture, what each setting computes, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import zoo
from tunekit.attach import load, prepare, unload
from tunekit.bottleneck import names_of, sites
from tunekit.bottleneck_config import BottleneckConfig
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.fields import from_plain
from tunekit.methods import _adapters
from tunekit.methods.bottleneck_adapter import BottleneckAdapter
from tunekit.structure import facts_of
from tunekit.sublayers import sublayers
from tunekit.task import TASKS, Task

CLASSIFY, WRITE, REWRITE = (Task.named(n) for n in ("sequence-classification", "causal-lm", "seq2seq"))
PFEIFFER, HOULSBY, PARALLEL = (BottleneckAdapter(variant=v) for v in ("pfeiffer", "houlsby", "parallel"))  # type: ignore[arg-type]
VARIANTS = {
    "houlsby": HOULSBY,
    "parallel": PARALLEL,
    "channel": BottleneckAdapter(
        residual_before_ln="post_add", ln_before=True, scaling="channel", reduction_factor=4.0
    ),
    "after-norm": BottleneckAdapter(residual_before_ln=False, ln_after=True, scaling="learned", non_linearity="gelu"),
    "everywhere": BottleneckAdapter(
        locations=("attention", "feed_forward"), reduction_factor={"0": 2.0, "default": 8.0}
    ),
}
AFTER_NORM = ("bert", "roberta", "electra", "albert", "deberta-v2", "distilbert", "bart")
EVERY_PAIR = [(a, t.name) for a in zoo.ARCHITECTURES for t in TASKS if zoo.fits(a, t)]


def task_of(architecture: str) -> Task:
    return next(t for t in TASKS if zoo.fits(architecture, t))


def with_adapter(architecture: str, method: BottleneckAdapter, task: Task | None = None) -> nn.Module:
    """A model with an adapter large enough to matter, the same for the same arguments."""
    model = prepare(zoo.build(architecture, task or task_of(architecture)), method, task or task_of(architecture))
    torch.manual_seed(1)
    with torch.no_grad():
        for site in sites(model):
            for p in site.parameters():
                nn.init.normal_(p, std=0.3)
    return model.eval()


def close(a: torch.Tensor, b: torch.Tensor, by: float = 1e-5) -> bool:
    return float((a - b).abs().max()) <= by


# ---------------------------------------------------------------------- where
@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_every_layer_has_its_sublayers(architecture: str) -> None:
    model = zoo.build(architecture, task_of(architecture))
    found = sublayers(model)
    by_layer: dict[str, list[str]] = {}
    for at in found:
        by_layer.setdefault(at.block, []).append(at.location)
        assert (at.norm is not None) == (architecture in AFTER_NORM)
    usual = ["attention", "feed_forward"]
    expected = {
        "albert": [usual],
        "t5": [usual] * 2 + [["attention", "cross_attention", "feed_forward"]] * 2,
        "bart": [usual] * 2 + [["attention", "cross_attention", "feed_forward"]] * 2,
    }.get(architecture, [usual] * 2)
    assert list(by_layer.values()) == expected
    assert sorted({at.index for at in found}) == list(range(len(expected)))


def test_the_same_architecture_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = sublayers(zoo.build("bert", CLASSIFY))
    monkeypatch.setattr("tunekit.sublayers.weightless_base", lambda base: pytest.fail("it was built again"))
    assert sublayers(zoo.build("bert", CLASSIFY)) == first


@pytest.mark.parametrize("kind", ["GPTNeoXConfig", "FalconConfig", "PhiConfig"])
def test_attention_and_feed_forward_that_are_added_at_once_are_told_apart(kind: str) -> None:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50}
    config = getattr(transformers, kind)(**sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert sorted(at.location for at in sublayers(model)) == ["attention", "feed_forward"]
    prepare(model, HOULSBY, WRITE)(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("architecture", "task"), [("bert", "sequence-classification"), ("llama", "causal-lm"), ("t5", "seq2seq")]
)
def test_every_variant_learns_and_comes_back(architecture: str, task: str, variant: str, tmp_path: Path) -> None:
    learns_and_comes_back(architecture, task, VARIANTS[variant], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("architecture", "task"), EVERY_PAIR)
def test_every_variant_learns_on_every_architecture_and_task(
    architecture: str, task: str, variant: str, tmp_path: Path
) -> None:
    learns_and_comes_back(architecture, task, VARIANTS[variant], tmp_path)


def learns_and_comes_back(architecture: str, task: str, method: BottleneckAdapter, folder: Path) -> None:
    named = Task.named(task)
    model = prepare(zoo.build(architecture, named), method, named)
    first = model(**zoo.batch(named))["loss"].item()
    seen = zoo.train(model, method.parameter_groups(model, 1e-2, 0.0), zoo.batch(named), steps=8)
    assert seen["without_gradient"] == set()
    assert model(**zoo.batch(named))["loss"].item() < first
    model.save_pretrained(folder)
    again = load(zoo.build(architecture, named), folder)
    assert close(zoo.logits(again, zoo.batch(named)), zoo.logits(model, zoo.batch(named)))


# ---------------------------------------------------------------------- what
@torch.no_grad()
def small(adapter: Any, x: torch.Tensor) -> torch.Tensor:
    """The adapter by its definition, from its weights alone."""
    hidden = torch.relu(x @ adapter.down.weight.T + adapter.down.bias)
    return hidden @ adapter.up.weight.T + adapter.up.bias


def stream_of(model: nn.Module, name: str, inputs: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    """What a module is called with and what it returns."""
    seen: list[Any] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda m, args, out: seen.append((args[0].detach(), out.detach()))
    )
    zoo.logits(model, inputs)
    handle.remove()
    return seen[-1]


def test_behind_a_norm_pfeiffer_adds_to_the_sum_what_it_makes_of_the_norm() -> None:
    model, plain = with_adapter("bert", PFEIFFER), zoo.build("bert", CLASSIFY)
    name = "bert.encoder.layer.0.output.LayerNorm"
    total, _ = stream_of(plain, name, zoo.batch(CLASSIFY))
    _, found = stream_of(model, name, zoo.batch(CLASSIFY))
    norm: Any = model.get_submodule(name).requires_grad_(False)
    site = next(s for s in sites(model) if s.at.location == "feed_forward")
    expected = nn.functional.layer_norm(total, (32,), norm.weight, norm.bias, norm.eps)
    expected = total + small(site.adapters["default"], expected)
    assert close(found, nn.functional.layer_norm(expected, (32,), norm.weight, norm.bias, norm.eps))


def test_in_front_of_norms_pfeiffer_reads_the_layers_output() -> None:
    model, plain = with_adapter("llama", PFEIFFER), zoo.build("llama", WRITE)
    _, before = stream_of(plain, "model.layers.0", zoo.batch(WRITE))
    _, found = stream_of(model, "model.layers.0", zoo.batch(WRITE))
    site = next(s for s in sites(model) if s.at.location == "feed_forward")
    assert close(found, before + small(site.adapters["default"], before))


def test_parallel_reads_the_stream_and_is_scaled() -> None:
    model, plain = with_adapter("llama", PARALLEL), zoo.build("llama", WRITE)
    read, _ = stream_of(plain, "model.layers.0.post_attention_layernorm", zoo.batch(WRITE))
    _, before = stream_of(plain, "model.layers.0", zoo.batch(WRITE))
    _, found = stream_of(model, "model.layers.0", zoo.batch(WRITE))
    site = next(s for s in sites(model) if s.at.location == "feed_forward")
    assert close(found, before + 4.0 * small(site.adapters["default"], read), by=1e-4)


def test_the_sum_may_be_made_before_or_at_the_norm() -> None:
    """The short way (in front of the norm) and the long way (behind the sublayer) are the same function."""
    model = with_adapter("bart", PFEIFFER, REWRITE)
    short = zoo.logits(model, zoo.batch(REWRITE))
    for site in sites(model):
        site.reads_sum = lambda chosen: False
    assert close(short, zoo.logits(model, zoo.batch(REWRITE)))


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_an_adapter_that_starts_at_zero_changes_nothing(architecture: str) -> None:
    method, task = BottleneckAdapter(variant="parallel"), task_of(architecture)
    model = prepare(zoo.build(architecture, task), method, task)
    assert torch.equal(zoo.logits(model, zoo.batch(task)), zoo.logits(zoo.build(architecture, task), zoo.batch(task)))


def test_left_out_layers_have_no_adapter_and_widths_go_by_layer() -> None:
    method = BottleneckAdapter(leave_out=(0,), reduction_factor={"1": 4.0, "default": 16.0})
    model = prepare(zoo.build("t5", REWRITE), method, REWRITE)
    units = {s.at.index: s.adapters["default"].down.out_features for s in sites(model) if len(s.adapters)}
    assert units == {1: 8, 2: 2, 3: 2}


def test_cross_attention_gets_one_where_asked() -> None:
    method = BottleneckAdapter(variant="houlsby", locations=("cross_attention",))
    model = prepare(zoo.build("bart", REWRITE), method, REWRITE)
    assert {s.at.location for s in sites(model) if len(s.adapters)} == {"cross_attention"}
    assert not zoo.train(model, method.parameter_groups(model, 1e-2, 0.0), zoo.batch(REWRITE))["without_gradient"]


# ---------------------------------------------------------------------- as a guest
@pytest.mark.parametrize("method", [PFEIFFER, HOULSBY, PARALLEL], ids=["pfeiffer", "houlsby", "parallel"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "gemma3", "mixtral", "t5", "bart"])
def test_reentrant_checkpointing_gives_the_same_gradients(architecture: str, method: BottleneckAdapter) -> None:
    task = task_of(architecture)
    plain = with_adapter(architecture, method)
    checkpointed = copy.deepcopy(plain)
    enable = (
        getattr(checkpointed, "activation_checkpointing_enable", None) or checkpointed.gradient_checkpointing_enable
    )
    enable({"use_reentrant": True})
    found = []
    for model in (plain, checkpointed):
        model.train()
        model(**zoo.batch(task))["loss"].backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.allclose(found[0][k], found[1][k], atol=1e-6) for k in found[0])


def test_a_copy_has_adapters_of_its_own() -> None:
    model = with_adapter("bert", PFEIFFER)
    twin, inputs = copy.deepcopy(model), zoo.batch(CLASSIFY)
    expected = zoo.logits(model, inputs)
    with torch.no_grad():
        for site in sites(twin):
            for p in site.parameters():
                p.add_(1.0)
    assert torch.equal(zoo.logits(model, inputs), expected)
    assert not close(zoo.logits(twin, inputs), expected)


def test_adapters_learn_in_full_precision_and_compute_in_the_bases() -> None:
    model = prepare(zoo.build("llama", WRITE).to(torch.bfloat16), HOULSBY, WRITE)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    seen: set[torch.dtype] = set()
    for site in sites(model):
        site.adapters["default"].up.register_forward_hook(lambda m, args, out: seen.add(out.dtype))
    out = model(**zoo.batch(WRITE))
    out["loss"].backward()
    assert out.logits.dtype == torch.bfloat16
    assert seen == {torch.bfloat16}


def test_cached_and_whole_answers_agree() -> None:
    model = with_adapter("gpt2", PFEIFFER, WRITE)
    ids = torch.tensor([[5, 6, 7, 8]])
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, use_cache=True, **how), model.generate(ids, use_cache=False, **how))


def test_unloaded_nothing_of_it_is_left() -> None:
    base = zoo.build("bart", REWRITE)
    before = [(n, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in base.named_modules()]
    unload(prepare(base, HOULSBY, REWRITE))
    assert [(n, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in base.named_modules()] == before
    assert names_of(base) == ()


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"reduction_factor": 0.0}, "bottleneck-reduction"),
        ({"reduction_factor": {"first": 2.0}}, "bottleneck-reduction"),
        ({"locations": ()}, "bottleneck-location"),
        ({"non_linearity": "rellu"}, "bottleneck-activation"),
        ({"dropout": 1.0}, "bottleneck-dropout"),
        ({"scaling": 0.0}, "bottleneck-scaling"),
        ({"variant": "houlsby", "residual_before_ln": False}, "bottleneck-placement"),
        ({"variant": "parallel", "original_ln_before": True}, "bottleneck-placement"),
        ({"scaling": "large"}, "bottleneck-adapter-type"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(settings: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidError, match=code):
        BottleneckAdapter(**settings)


@pytest.mark.parametrize(
    ("method", "code"),
    [
        (BottleneckAdapter(locations=("cross_attention",)), "adapter-location"),
        (BottleneckAdapter(leave_out=(7,)), "adapter-layer"),
        (BottleneckAdapter(leave_out=(0, 1)), "adapter-layer"),
    ],
)
def test_what_a_model_has_not_is_refused_before_anything_is_built(method: BottleneckAdapter, code: str) -> None:
    base = zoo.build("bert", CLASSIFY)
    refusal = method.supports(facts_of(base), CLASSIFY)
    assert refusal is not None
    assert refusal.code == code
    with pytest.raises(UnsupportedError, match=code):
        prepare(base, method, CLASSIFY)
    assert not list(sites(base))


def test_a_folder_of_another_width_is_refused_and_the_model_left_alone(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    with_adapter("bert", PFEIFFER).save_pretrained(tmp_path)
    wide = BertForSequenceClassification(
        BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100)
    )
    with pytest.raises(UnsupportedError, match="adapter-wrong-base"):
        load(wide, tmp_path)
    assert not list(sites(wide))


@pytest.mark.parametrize("settings", [{}, *({"variant": v} for v in ("houlsby", "parallel")), {"leave_out": (1,), "ln_after": True},
                                      {"locations": ("attention",), "scaling": 2.0, "reduction_factor": {"default": 3.0}}])  # fmt: skip
def test_a_configuration_says_which_method_it_was(settings: dict[str, Any]) -> None:
    method = BottleneckAdapter(**settings)
    assert BottleneckAdapter.of_config(method.config) == method
    assert from_plain(BottleneckConfig, method.config.to_dict(), "adapter") == method.config


@pytest.mark.parametrize("architecture", ["bert", "llama", "gemma3", "albert", "mixtral", "modernbert"])
def test_a_few_layers_stand_for_a_deep_stack(architecture: str) -> None:
    config, task = zoo.config(architecture), task_of(architecture)
    given = {k: v for k, v in config.to_dict().items() if k != "layer_types"}
    deep = type(config)(**{**given, "num_hidden_layers": 9})
    told = _adapters._places(deep.to_json_string(use_diff=False), deep.model_type, task.auto_class)
    classes = getattr(transformers, task.auto_class)._model_mapping[type(deep)]
    whole = sublayers(_adapters._weightless(classes[0] if isinstance(classes, tuple) else classes, deep))
    assert told is not None
    assert [(at.index, at.location, at.width) for at in told] == [(at.index, at.location, at.width) for at in whole]
