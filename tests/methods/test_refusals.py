"""What cannot be is refused by every method alike: one error with its code and the way out, and the model is what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from tunekit.attach import prepare, prepared
from tunekit.contracts import Method
from tunekit.errors import InvalidError, TunekitError
from tunekit.methods.bottleneck_adapter import BottleneckAdapter
from tunekit.methods.ia3 import IA3
from tunekit.methods.layernorm_tuning import LayerNormTuning
from tunekit.methods.lora import Lora
from tunekit.methods.p_tuning import PTuning
from tunekit.methods.p_tuning_v2 import PTuningV2
from tunekit.methods.partial import Partial
from tunekit.methods.peft import Peft
from tunekit.methods.prefix_tuning import PrefixTuning
from tunekit.methods.prompt_tuning import PromptTuning
from tunekit.task import Task

CLASSIFY, WRITE = Task.named("sequence-classification"), Task.named("causal-lm")
PROMPTS = (PromptTuning, PTuning, PTuningV2, PrefixTuning)
METHODS = zoo.methods()


def everything_of(model: nn.Module) -> dict[str, Any]:
    """All of a model that a method might touch: the modules with their attributes and hooks, flags, values, configuration."""
    return {
        "tree": {name: (id(m), sorted(vars(m))) for name, m in model.named_modules()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "flags": [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
        "values": {k: v.clone() for k, v in model.state_dict().items()},
        "config": model.config.to_json_string(use_diff=False),
    }


def refused(model: nn.Module, act: Callable[[], object], code: str) -> TunekitError:
    """The one error of this code, which says the way out; the model is what it was."""
    before = everything_of(model)
    with pytest.raises(TunekitError) as caught:
        act()
    after = everything_of(model)
    values = before.pop("values"), after.pop("values")
    assert before == after
    assert values[0].keys() == values[1].keys()
    assert all(torch.equal(values[0][k], values[1][k]) for k in values[0])
    assert caught.value.codes == (code,)
    assert caught.value.findings[0].fix
    return caught.value


def assert_refused(model: nn.Module, method: Method, code: str, task: Task = CLASSIFY) -> TunekitError:
    return refused(model, lambda: prepare(model, method, task), code)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize(
    ("method", "code"),
    [
        (Lora(r=2, target_modules=("no_such_layer",)), "lora-target-missing"),
        (Lora(r=2, target_modules=r".*\.no_such_layer"), "lora-target-missing"),
        (IA3(target_modules=("no_such_layer",)), "ia3-target-missing"),
        (LayerNormTuning(modules_to_save=("no_such_layer",)), "layernorm-tuning-module-missing"),
        (IA3(modules_to_save=("no_such_layer",)), "ia3-module-missing"),
        (Lora(r=2, modules_to_save=("no_such_layer",)), "lora-module-missing"),
        (Peft(config={"peft_type": "VERA", "r": 2, "target_modules": ["no_such_layer"]}), "peft-target-missing"),
        (Peft(config={"peft_type": "LOHA", "r": 2, "target_modules": r".*\.no_such_layer"}), "peft-target-missing"),
        (Partial(patterns=("no_such_layer",)), "partial-pattern"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_a_target_that_matches_nothing(method: Method, code: str, architecture: str) -> None:
    assert_refused(zoo.build(architecture, CLASSIFY), method, code)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(
    ("method", "code"),
    [
        (Lora(r=33, target_modules="attention"), "lora-rank-layer"),
        (Peft(config={"peft_type": "LORA", "r": 33}), "peft-rank-layer"),
        (Peft(config={"peft_type": "ADALORA", "init_r": 40, "target_r": 33, "total_step": 9}), "peft-rank-layer"),
    ],
    ids=["lora", "peft's lora", "adalora"],
)
def test_a_rank_larger_than_the_layer(method: Method, code: str, architecture: str) -> None:
    caught = assert_refused(zoo.build(architecture, CLASSIFY), method, code)
    assert "at most 32" in caught.findings[0].fix or "at most 16" in caught.findings[0].fix


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "llama", "bart", "modernbert"])
@pytest.mark.parametrize("kind", PROMPTS, ids=lambda k: k.slug)
def test_a_prompt_longer_than_the_context(kind: Any, architecture: str) -> None:
    model = zoo.build(architecture, CLASSIFY)
    length = model.config.max_position_embeddings
    assert_refused(model, kind(num_virtual_tokens=length), "prompt-too-long")
    task = Task.named("token-classification") if architecture != "bart" else Task.named("question-answering")
    assert_refused(zoo.build(architecture, task), kind(num_virtual_tokens=10**6), "prompt-too-long", task)


@pytest.mark.parametrize("value", [0, -1, -20])
@pytest.mark.parametrize(
    ("kind", "field", "code"),
    [
        *((kind, "num_virtual_tokens", f"{kind.slug}-tokens") for kind in PROMPTS),
        (PTuning, "encoder_hidden_size", "p-tuning-encoder"),
        (PTuning, "encoder_num_layers", "p-tuning-encoder"),
        (Lora, "r", "lora-r"),
        (Lora, "lora_alpha", "lora-alpha"),
        (BottleneckAdapter, "reduction_factor", "bottleneck-reduction"),
        (Partial, "last_layers", "partial-layers"),
    ],
    ids=lambda v: v.slug if isinstance(v, type) else None,
)
def test_a_length_that_is_not_positive(kind: Any, field: str, code: str, value: int) -> None:
    with pytest.raises(InvalidError) as caught:
        kind(**{field: value})
    assert caught.value.codes == (code,)
    assert field in str(caught.value)


@pytest.mark.parametrize("second", METHODS)
@pytest.mark.parametrize("first", ["lora", "prefix-tuning", "prompt-tuning", "bottleneck-adapter", "full"])
def test_a_second_method_at_once(first: str, second: str) -> None:
    model = prepare(zoo.build("bert", CLASSIFY), METHODS[first], CLASSIFY)
    assert_refused(model, METHODS[second], "model-already-prepared")
    assert prepared(model).method == METHODS[first]


@pytest.mark.parametrize("slug", METHODS)
def test_a_model_that_peft_has_wrapped(slug: str) -> None:
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(zoo.build("gpt2", WRITE), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    assert_refused(theirs, METHODS[slug], "model-already-prepared", WRITE)


@pytest.mark.parametrize("slug", METHODS)
def test_a_model_in_a_wrapper_of_torch(slug: str) -> None:
    base = zoo.build("bert", CLASSIFY)
    for wrapped in (nn.DataParallel(base), torch.compile(base, backend="eager")):
        refused(base, lambda m=wrapped: prepare(m, METHODS[slug], CLASSIFY), "model-wrapped")
