"""Putting methods on and taking them off: what is refused, and that a refusal leaves no trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from tunekit.attach import load, prepare, prepared, unload
from tunekit.contracts import Method
from tunekit.errors import MissingError, TunekitError, UnreadableError, UnsupportedError
from tunekit.methods.bitfit import BitFit
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.methods.partial import Partial
from tunekit.task import Task

CLASSIFY, TAG = Task.named("sequence-classification"), Task.named("token-classification")
KINDS = {"lora": Lora(r=4), "bitfit": BitFit(), "partial": Partial(last_layers=1), "full": Full()}


def saved(method: Method, folder: Path, architecture: str = "bert", task: Task = CLASSIFY) -> Path:
    prepare(zoo.build(architecture, task), method, task).save_pretrained(str(folder))
    return folder


def assert_refused(base: nn.Module, act: Callable[[], object], kind: type[TunekitError], code: str) -> None:
    """One finding of this code, and the model is what it was."""
    before = {k: v.clone() for k, v in base.state_dict().items()}
    tree = {name: (id(m), sorted(vars(m))) for name, m in base.named_modules()}
    flags = [p.requires_grad for p in base.parameters()]
    with pytest.raises(kind) as caught:
        act()
    assert caught.value.codes == (code,)
    assert base.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    assert {name: (id(m), sorted(vars(m))) for name, m in base.named_modules()} == tree
    assert [p.requires_grad for p in base.parameters()] == flags


# ---------------------------------------------------------------------- prepare
def test_a_model_of_another_task_is_refused() -> None:
    base = zoo.build("bert", TAG)
    assert_refused(base, lambda: prepare(base, Lora(), CLASSIFY), UnsupportedError, "model-task")


@pytest.mark.parametrize("task", ["sequence-classification", "causal-lm", "question-answering"])
def test_a_model_without_a_head_is_refused(task: str) -> None:
    from transformers import AutoModel

    base = AutoModel.from_config(zoo.config("bert"))
    assert_refused(base, lambda: prepare(base, Lora(), task), UnsupportedError, "model-task")


def test_a_model_that_peft_wrapped_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    base = zoo.build("bert", CLASSIFY)
    theirs = get_peft_model(base, LoraConfig(target_modules=["query"]))
    for model in (theirs, base):
        assert_refused(base, lambda m=model: prepare(m, Lora(), CLASSIFY), UnsupportedError, "model-already-prepared")


def test_a_method_without_ground_is_refused_with_a_nearer_one() -> None:
    base = zoo.build("llama", CLASSIFY)
    assert_refused(base, lambda: prepare(base, BitFit(), CLASSIFY), UnsupportedError, "bitfit-no-bias")
    with pytest.raises(UnsupportedError, match="kind: lora"):
        prepare(base, BitFit(), CLASSIFY)


def test_a_task_may_be_named() -> None:
    assert prepared(prepare(zoo.build("bert", CLASSIFY), Lora(r=2), "sequence-classification")).task is CLASSIFY


def test_without_copies_a_model_that_was_overwritten_cannot_be_unloaded() -> None:
    model = prepare(zoo.build("bert", CLASSIFY), Full(), CLASSIFY, reversible=False)
    assert prepared(model).snapshot.values == ()
    with pytest.raises(UnsupportedError, match="unload-not-kept"):
        unload(model)
    adapter = prepare(zoo.build("bert", CLASSIFY), Lora(r=2), CLASSIFY, reversible=False)
    assert type(unload(adapter)).__name__ == "BertForSequenceClassification"


def test_a_plain_model_cannot_be_unloaded() -> None:
    with pytest.raises(UnsupportedError, match="model-not-prepared"):
        unload(zoo.build("bert", CLASSIFY))


def test_it_is_seen_through_wrappers() -> None:
    model = prepare(zoo.build("bert", CLASSIFY), BitFit(), CLASSIFY)
    assert prepared(nn.DataParallel(model)) is prepared(model)


def test_preparing_again_after_unloading_works_for_every_pair_of_methods() -> None:
    base = zoo.build("bert", CLASSIFY)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    for first in KINDS.values():
        for second in KINDS.values():
            unload(prepare(base, first, CLASSIFY))
            model = prepare(base, second, CLASSIFY)
            zoo.train(model, second.parameter_groups(model, 1e-2, 0.0), zoo.batch(CLASSIFY), steps=1)
            unload(model)
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())


# ---------------------------------------------------------------------- load
@pytest.mark.parametrize("name", KINDS)
def test_loading_onto_another_architecture_is_refused(name: str, tmp_path: Path) -> None:
    folder = saved(KINDS[name], tmp_path)
    base = zoo.build("roberta", CLASSIFY)
    assert_refused(base, lambda: load(base, folder), UnsupportedError, "adapter-wrong-base")


@pytest.mark.parametrize("name", KINDS)
def test_loading_onto_another_number_of_labels_is_refused(name: str, tmp_path: Path) -> None:
    folder = saved(KINDS[name], tmp_path)
    base = zoo.build("bert", CLASSIFY, num_labels=5)
    assert_refused(base, lambda: load(base, folder), UnsupportedError, "adapter-wrong-base")


@pytest.mark.parametrize("name", KINDS)
def test_loading_onto_fewer_layers_is_refused(name: str, tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    folder = saved(KINDS[name], tmp_path)
    small = zoo.config("bert")
    small.num_hidden_layers = 1
    base = BertForSequenceClassification(small)
    assert_refused(base, lambda: load(base, folder), UnsupportedError, "adapter-wrong-base")


@pytest.mark.parametrize("name", KINDS)
def test_loading_onto_another_width_is_refused(name: str, tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    folder = saved(KINDS[name], tmp_path)
    wide = zoo.config("bert")
    wide.hidden_size = 64
    base = BertForSequenceClassification(wide)
    assert_refused(base, lambda: load(base, folder), UnsupportedError, "adapter-wrong-base")


@pytest.mark.parametrize("name", KINDS)
def test_a_torn_weight_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = saved(KINDS[name], tmp_path)
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-20])
    base = zoo.build("bert", CLASSIFY)
    assert_refused(base, lambda: load(base, folder), UnreadableError, "adapter-corrupted")


@pytest.mark.parametrize(("name", "config"), [("lora", "adapter_config.json"), ("bitfit", "tunekit.json")])
@pytest.mark.parametrize("text", ["{", "[]", "{}", "\x00", '{"kind": "tunekit-learnt", "method": 3}'])
def test_a_broken_description_is_refused(name: str, config: str, text: str, tmp_path: Path) -> None:
    folder = saved(KINDS[name], tmp_path)
    (folder / config).write_text(text)
    base = zoo.build("bert", CLASSIFY)
    assert_refused(base, lambda: load(base, folder), UnreadableError, "adapter-corrupted")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    folder = saved(BitFit(), tmp_path)
    data = json.loads((folder / "tunekit.json").read_text())
    (folder / "tunekit.json").write_text(json.dumps({**data, "schema": 99}))
    base = zoo.build("bert", CLASSIFY)
    assert_refused(base, lambda: load(base, folder), UnreadableError, "adapter-schema")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    base = zoo.build("bert", CLASSIFY)
    for name, method in (("a", Lora(r=2)), ("b", BitFit())):
        folder = saved(method, tmp_path / name)
        next(folder.glob("*.safetensors")).unlink()
        assert_refused(base, lambda f=folder: load(base, f), UnreadableError, "adapter-corrupted")


def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    folder = saved(Lora(r=2), tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"not even a pickle")
    base = zoo.build("bert", CLASSIFY)
    assert_refused(base, lambda: load(base, folder), UnreadableError, "adapter-pickled")


def test_an_adapter_that_names_code_to_import_is_refused(tmp_path: Path) -> None:
    folder = saved(Lora(r=2), tmp_path)
    data = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**data, "megatron_config": {"a": 1}, "megatron_core": "antigravity"})
    )
    base = zoo.build("bert", CLASSIFY)
    assert_refused(base, lambda: load(base, folder), UnreadableError, "adapter-corrupted")


def test_no_folder_and_a_folder_with_nothing_are_missing(tmp_path: Path) -> None:
    base = zoo.build("bert", CLASSIFY)
    assert_refused(base, lambda: load(base, tmp_path / "nowhere"), MissingError, "adapter-missing")
    assert_refused(base, lambda: load(base, tmp_path), MissingError, "adapter-missing")


def test_folders_of_ours_do_not_stack(tmp_path: Path) -> None:
    one, two = saved(BitFit(), tmp_path / "one"), saved(Lora(r=2), tmp_path / "two")
    base = zoo.build("bert", CLASSIFY)
    assert_refused(base, lambda: load(base, one, two), UnsupportedError, "adapters-several")
    assert_refused(base, lambda: load(base), UnsupportedError, "adapters-several")


def test_loading_onto_a_prepared_model_is_refused(tmp_path: Path) -> None:
    folder = saved(Lora(r=2), tmp_path)
    model = prepare(zoo.build("bert", CLASSIFY), BitFit(), CLASSIFY)
    assert_refused(model, lambda: load(model, folder), UnsupportedError, "model-already-prepared")


def test_a_folder_of_ours_holds_no_pickle_and_no_local_path(tmp_path: Path) -> None:
    folder = saved(BitFit(), tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "tunekit.json"]
    assert json.loads((folder / "tunekit.json").read_text()) == {
        "kind": "tunekit-learnt", "schema": 1, "method": {"kind": "bitfit"}, "task": "sequence-classification",
        "base": {"class": "BertForSequenceClassification", "name": None},
    }  # fmt: skip


def test_pushing_a_part_of_a_model_is_refused(tmp_path: Path) -> None:
    model = prepare(zoo.build("bert", CLASSIFY), BitFit(), CLASSIFY)
    with pytest.raises(TunekitError, match="push-to-hub"):
        model.save_pretrained(tmp_path / "x", push_to_hub=True)
    assert not (tmp_path / "x").exists()


def test_a_whole_model_reloads_as_transformers_does_too(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = prepare(zoo.build("bert", CLASSIFY), Full(), CLASSIFY)
    zoo.train(model, Full().parameter_groups(model, 1e-2, 0.0), zoo.batch(CLASSIFY))
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(zoo.logits(again, zoo.batch(CLASSIFY)), zoo.logits(model, zoo.batch(CLASSIFY)))
