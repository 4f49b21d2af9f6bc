"""PEFT's other types, passed through: every one that is installed trains beside the head, reloads and merges, or is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from peft import PEFT_TYPE_TO_CONFIG_MAPPING as KNOWN
from torch import nn

import zoo
from tunekit.attach import load, merge, prepare, prepared, unload
from tunekit.errors import InvalidError, TunekitError, UnsupportedError
from tunekit.methods.peft import Peft
from tunekit.plan import Plan
from tunekit.structure import facts_of, head_parameters
from tunekit.task import Task

pytestmark = [
    # BOFT looks for a compiler when it is put on; FRoD's sparse matrices warn of themselves; AdaLoRA's layers of which
    # no rank is left are taken for shards, and its ranks for LoRA's (PEFT 0.21). All go on.
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension"),
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. .* LoRA tensor.s. have invalid shape"),
]

CLASSIFY, TAG, WRITE = (Task.named(n) for n in ("sequence-classification", "token-classification", "causal-lm"))

SMALL: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10, "init_r": 4, "target_r": 2}, "ADAMSS": {"r": 4}, "BOFT": {"boft_block_size": 4},
    "OFT": {"r": 0, "oft_block_size": 8}, "C3A": {"block_size": 8}, "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "FOURIERFT": {"n_frequency": 10}, "WAVEFT": {"n_frequency": 10}, "RANDLORA": {"r": 4}, "UNILORA": {"theta_d_length": 64},
    "MISS": {"r": 4}, "ROAD": {"group_size": 8}, "SHIRA": {"r": 2}, "FROD": {"progressbar": False},
    "TRAINABLE_TOKENS": {"token_indices": [3, 4]}, "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2}, "XLORA": {"hidden_size": 32, "adapters": {}},
}  # fmt: skip
"""What a model of width 32 needs; every other type runs with PEFT's defaults."""

PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE")
REFUSED = {
    "ADAPTION_PROMPT": "peft-head", "TRAINABLE_TOKENS": "peft-head", "XLORA": "peft-head", "POLY": "peft-inputs",
}  # fmt: skip
"""For tasks with a head."""
UNMERGED, LOOKING = {"LILY"}, {"ADAMSS", "FROD", "SHIRA"}
"""Types that cannot be merged, and those whose start looks at the base's weights."""
TYPES = sorted(k.value for k in KNOWN if k.value not in PROMPTS)
WORKING = [k for k in TYPES if k not in (*REFUSED, "SHADOW")]


def method(kind: str, **values: Any) -> Peft:
    return Peft(config={"peft_type": kind, **SMALL.get(kind, {}), **values})


def trained(one: Peft, architecture: str = "bert", task: Task = CLASSIFY) -> nn.Module:
    model = prepare(zoo.build(architecture, task), one, task)
    zoo.train(model, one.parameter_groups(model, 1e-2, 0.0), zoo.batch(task))
    return model


# ---------------------------------------------------------------------- every type
@pytest.mark.parametrize("kind", WORKING)
def test_every_type_learns_beside_the_head_and_leaves_the_base_alone(kind: str) -> None:
    base = zoo.build("bert", CLASSIFY)
    heads, own = head_parameters(base, CLASSIFY), dict(base.named_parameters())
    before = {n: p.detach().clone() for n, p in own.items()}
    one = method(kind)
    model = prepare(base, one, CLASSIFY)
    names = one.trainable_names(model)
    plain = {n.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for n in names}
    assert heads < plain
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    zoo.train(model, one.parameter_groups(model, 1e-2, 0.0), zoo.batch(CLASSIFY))
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    assert changed <= names
    assert any("modules_to_save" not in n for n in changed)
    assert all(torch.equal(p, before[n]) for n, p in own.items() if n not in heads and p.shape == before[n].shape)
    assert unload(model) is base
    assert all(torch.equal(p, before[n]) for n, p in base.named_parameters())


@pytest.mark.parametrize("kind", WORKING)
def test_every_type_reloads_and_merges(kind: str, tmp_path: Path) -> None:
    model, inputs = trained(method(kind)), zoo.batch(CLASSIFY)
    expected = zoo.logits(model, inputs)
    model.save_pretrained(tmp_path)
    again = load(zoo.build("bert", CLASSIFY), tmp_path)
    assert (zoo.logits(again, inputs) - expected).abs().max() <= 1e-5
    assert prepared(again).method is not None
    if kind in UNMERGED:
        with pytest.raises(UnsupportedError, match="method-no-merge"):
            merge(model)
        assert torch.equal(zoo.logits(model, inputs), expected)
        return
    plain = merge(model)
    assert plain.state_dict().keys() == zoo.build("bert", CLASSIFY).state_dict().keys()
    assert (zoo.logits(plain, inputs) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", WORKING)
def test_every_type_is_traced_without_weights_or_says_that_it_cannot_be(kind: str) -> None:
    base = zoo.build("bert", CLASSIFY, device="meta")
    if kind in LOOKING:
        with pytest.raises(UnsupportedError, match="peft-weightless"):
            method(kind).apply(base, CLASSIFY)
        return
    weightless = method(kind).apply(base, CLASSIFY)
    real = prepare(zoo.build("bert", CLASSIFY), method(kind), CLASSIFY)
    assert all(p.is_meta for p in weightless.parameters())
    assert {n: p.shape for n, p in weightless.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


@pytest.mark.parametrize("kind", sorted(set(TYPES) & {*REFUSED}))
def test_types_that_cannot_carry_a_head_or_our_rows_are_refused_in_words(kind: str) -> None:
    facts = facts_of(zoo.build("bert", CLASSIFY, device="meta"))
    finding = method(kind).supports(facts, CLASSIFY)
    assert finding is not None
    assert finding.code == REFUSED[kind]
    assert "kind: lora" in finding.fix


@pytest.mark.parametrize("kind", PROMPTS)
def test_soft_prompts_are_steered_to_ours(kind: str) -> None:
    if kind not in KNOWN:
        pytest.skip(f"needs a PEFT that has {kind}")
    settings = (
        {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1], "task_type": "CAUSAL_LM"}
        if kind == "CPT"
        else {}
    )
    asked = Peft(config={"peft_type": kind, **(settings or {"num_virtual_tokens": 4})})
    finding = asked.supports(facts_of(zoo.build("llama", WRITE)), WRITE)
    assert finding is not None
    assert finding.code == "peft-prompt"
    assert re.search(r"kind: (prompt|p|prefix)-tuning", finding.fix)
    with pytest.raises(TunekitError, match="peft-prompt"):
        prepare(zoo.build("llama", WRITE), asked, WRITE)


@pytest.mark.filterwarnings("ignore:`init_lora_weights` is '(eva|corda)'")
@pytest.mark.parametrize("start", ["pissa", "eva", "corda"])
def test_starts_out_of_the_weights_or_of_data_are_steered_to_ours(start: str) -> None:
    asked = Peft(config={"peft_type": "LORA", "init_lora_weights": start})
    finding = asked.supports(facts_of(zoo.build("llama", WRITE)), WRITE)
    assert finding is not None
    assert finding.code == "peft-init"
    with pytest.raises(TunekitError, match="peft-init"):
        prepare(zoo.build("llama", WRITE), asked, WRITE)


def test_a_type_that_peft_renamed_is_known_by_its_old_name() -> None:
    assert Peft(config={"peft_type": "BONE", "r": 8}) == Peft(config={"peft_type": "MISS", "r": 8})


@pytest.mark.parametrize("kind", ["TRAINABLE_TOKENS", "ADAPTION_PROMPT", "SHADOW"])
def test_types_for_decoders_and_without_a_head_work_there(kind: str, tmp_path: Path) -> None:
    if kind not in KNOWN:
        pytest.skip(f"needs a PEFT that has {kind}")
    model = trained(method(kind), "llama", WRITE)
    model.save_pretrained(tmp_path)
    again = load(zoo.build("llama", WRITE), tmp_path)
    assert torch.allclose(zoo.logits(again, zoo.batch(WRITE)), zoo.logits(model, zoo.batch(WRITE)), atol=1e-5)


# ---------------------------------------------------------------------- the configuration
def test_a_live_configuration_becomes_plain_values_that_a_plan_file_keeps(tmp_path: Path) -> None:
    one = Peft(config=peft.LoHaConfig(r=4, target_modules={"value", "query"}, rank_pattern={"query": 2}))
    assert one.config == {
        "peft_type": "LOHA",
        "r": 4,
        "target_modules": ["query", "value"],
        "rank_pattern": {"query": 2},
    }
    assert (
        Peft(config={"peft_type": "LOHA", "r": 4, "target_modules": ("query", "value"), "rank_pattern": {"query": 2}})
        == one
    )
    plan = Plan(model="./bert", task="sequence-classification", method=one)
    assert Plan.load(plan.save(tmp_path / "plan.yaml")).method == one
    assert yaml.safe_load((tmp_path / "plan.yaml").read_text())["method"]["config"] == one.config  # fmt: skip


def test_what_the_user_passed_is_not_changed() -> None:
    given = {"peft_type": "LOHA", "r": 4, "target_modules": {"query"}, "peft_version": "1"}
    live = peft.LoHaConfig(r=4, target_modules=["query"])
    said = live.to_dict()
    for config in (given, live):
        prepare(zoo.build("bert", CLASSIFY), Peft(config=config), CLASSIFY)
    assert given == {"peft_type": "LOHA", "r": 4, "target_modules": {"query"}, "peft_version": "1"}
    assert live.to_dict() == said


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({}, "peft-type-unknown"), ({"peft_type": "LOHAA"}, "peft-type-unknown"), ({"peft_type": "LOHA", "rank": 4}, "peft-setting-unknown"),
        ({"peft_type": "LOHA", "target_modules": [object()]}, "peft-setting-type"), ({"peft_type": "ADALORA"}, "peft-config"),
        ({"peft_type": "LORA", "megatron_config": {"a": 1}}, "peft-megatron"), ("loha", "peft-type"), (None, "peft-type"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused_when_it_is_made(config: Any, code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Peft(config=config)
    assert caught.value.codes == (code,)


def test_an_unknown_type_or_setting_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidError, match="LOHA"):
        Peft(config={"peft_type": "LOHAA"})
    with pytest.raises(InvalidError, match="rank_pattern"):
        Peft(config={"peft_type": "LOHA", "rank_patern": {}})


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"peft_type": "LOHA", "target_modules": ["querry"]}, "peft-target-missing"), ({"peft_type": "LOHA", "target_modules": ".*x"}, "peft-target-missing"),
        ({"peft_type": "LOHA", "target_modules": ["classifier"]}, "peft-target-head"), ({"peft_type": "LOHA", "modules_to_save": ["x"]}, "peft-module-missing"),
        ({"peft_type": "VBLORA", "vector_length": 7}, "peft-refused"), ({"peft_type": "SHADOW"} if "SHADOW" in KNOWN else {"peft_type": "VBLORA", "vector_length": 7}, "peft-refused"), ({"peft_type": "LOHA", "task_type": "CAUSAL_LM"}, "peft-task"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_do_is_refused_and_the_model_untouched(config: dict[str, Any], code: str) -> None:
    base = zoo.build("bert", CLASSIFY)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    with pytest.raises(TunekitError) as caught:
        prepare(base, Peft(config=config), CLASSIFY)
    assert caught.value.codes == (code,)
    assert base.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())


def test_the_advisor_does_not_guess_a_configuration_and_says_so() -> None:
    from transformers import BertConfig

    import tunekit

    asked = {
        "task": "sequence-classification",
        "num_examples": 100,
        "num_labels": 2,
        "mean_tokens": 9,
        "hardware": "24GB",
    }
    with pytest.raises(InvalidError, match=r"nobody can guess its `config`") as caught:
        tunekit.advise(BertConfig(), methods=["peft"], **asked)
    assert caught.value.codes == ("method-needs-settings",)


@pytest.mark.parametrize(("kind", "works"), [("VERA", True), ("LORA", True), ("LOHA", False), ("LN_TUNING", True)])
def test_a_quantised_base_takes_the_types_that_have_layers_for_it(kind: str, works: bool) -> None:
    facts = facts_of(zoo.build("bert", CLASSIFY, device="meta"))
    finding = method(kind).supports(facts, CLASSIFY, quantization="nf4")
    assert (finding is None) == works
    assert works or finding.code == "peft-quantized"


# ---------------------------------------------------------------------- targets and heads
@pytest.mark.parametrize("wanted", [None, "all-linear"])
def test_all_linear_layers_are_adapted_and_the_head_is_not(wanted: str | None) -> None:
    model = prepare(zoo.build("bert", TAG), Peft(config={"peft_type": "HRA", "r": 2, "target_modules": wanted}), TAG)
    layers = [n for n, m in model.named_modules() if "hra_u" in m._modules or hasattr(m, "hra_u")]
    assert len(layers) == 2 * 6
    assert not any("classifier" in n for n in layers)


def test_biases_that_learn_are_put_back() -> None:
    base = zoo.build("bert", CLASSIFY)
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    one = Peft(config={"peft_type": "HRA", "r": 2, "bias": "all"})
    model = prepare(base, one, CLASSIFY)
    zoo.train(model, one.parameter_groups(model, 1e-2, 0.0), zoo.batch(CLASSIFY))
    assert any(not torch.equal(p, before[n]) for n, p in base.named_parameters() if n in before)
    unload(model)
    assert all(torch.equal(p, before[n]) for n, p in base.named_parameters())


def test_adalora_moves_its_ranks_while_a_plain_trainer_trains(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    one = method("ADALORA", total_step=12, init_r=4, target_r=1, tinit=2, tfinal=3, deltaT=1)
    model = prepare(zoo.build("bert", CLASSIFY), one, CLASSIFY)
    rows = zoo.batch(CLASSIFY, rows=16)
    args = TrainingArguments(
        str(tmp_path), max_steps=12, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    data = [{k: v[i] for k, v in rows.items()} for i in range(16)]
    Trainer(model, args, train_dataset=data, callbacks=list(one.callbacks())).train()
    values = [p for n, p in model.named_parameters() if "lora_E" in n]
    kept = sum(int((p != 0).sum()) for p in values)
    assert kept == 1 * len(values)
    assert method("LOHA").callbacks() == ()
    model.save_pretrained(tmp_path / "saved")
    again = load(zoo.build("bert", CLASSIFY), tmp_path / "saved")
    assert torch.allclose(zoo.logits(again, zoo.batch(CLASSIFY)), zoo.logits(model, zoo.batch(CLASSIFY)), atol=1e-5)
