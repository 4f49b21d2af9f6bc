"""AdapterHub's folders: what `adapters` 1.3 saved gives the logits that it gave there, and what we write is its own format.

The folders in tests/fixtures/adapterhub were written by that library (`make.py` beside them); `expected.safetensors`
holds its logits.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zoo
from tunekit import adapterhub
from tunekit.attach import load, prepare, prepared
from tunekit.bottleneck import sites
from tunekit.errors import TunekitError, UnsupportedError
from tunekit.methods.bottleneck_adapter import BottleneckAdapter
from tunekit.task import Task

FIXTURES = Path(__file__).parent.parent / "fixtures" / "adapterhub"
sys.path.insert(0, str(FIXTURES))
import make  # noqa: E402

FOLDERS = [(a, t, f) for a, t in make.CELLS for f in make.KINDS if (FIXTURES / a / f).is_dir()]
VARIANTS = {"seq_bn": "pfeiffer", "double_seq_bn": "houlsby", "par_bn": "parallel"}
CLASSIFY = Task.named("sequence-classification")


def base(architecture: str, task: str) -> nn.Module:
    return make.base(architecture, Task.named(task))


def expected(folder: Path) -> torch.Tensor:
    return load_file(folder / "expected.safetensors")["logits"]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= 1e-5


def copied(tmp_path: Path, name: str = "bert/seq_bn") -> Path:
    return Path(shutil.copytree(FIXTURES / name, tmp_path / "copy"))


# ---------------------------------------------------------------------- reading
def test_there_are_folders_of_every_kind_for_the_five_named_architectures() -> None:
    assert {(a, f) for a, _, f in FOLDERS} >= {
        (a, f) for a in ("bert", "roberta", "gpt2", "t5", "bart") for f in make.KINDS
    }


@pytest.mark.parametrize(("architecture", "task", "kind"), FOLDERS)
def test_an_adapter_of_adapterhub_gives_the_logits_that_it_gave_there(architecture: str, task: str, kind: str) -> None:
    folder = FIXTURES / architecture / kind
    model = load(base(architecture, task), folder, task=task)
    assert close(zoo.logits(model, zoo.batch(Task.named(task))), expected(folder))
    assert not close(zoo.logits(base(architecture, task), zoo.batch(Task.named(task))), expected(folder))
    what = prepared(model)
    assert what is not None
    assert isinstance(what.method, BottleneckAdapter)
    assert what.method.variant == VARIANTS[kind]


def test_the_task_is_known_by_the_models_class() -> None:
    what = prepared(load(base("bert", "sequence-classification"), FIXTURES / "bert" / "seq_bn"))
    assert what is not None
    assert what.task == CLASSIFY


def test_training_goes_on_from_there_and_is_saved_our_way(tmp_path: Path) -> None:
    model = load(base("bert", "sequence-classification"), FIXTURES / "bert" / "seq_bn")
    zoo.train(model, BottleneckAdapter().parameter_groups(model, 1e-2, 0.0), zoo.batch(CLASSIFY))
    model.save_pretrained(tmp_path)
    again = load(base("bert", "sequence-classification"), tmp_path)
    assert close(zoo.logits(again, zoo.batch(CLASSIFY)), zoo.logits(model, zoo.batch(CLASSIFY)))


def test_a_head_for_another_task_is_left_out() -> None:
    model = load(base("bert", "token-classification"), FIXTURES / "bert" / "seq_bn")
    own = base("bert", "token-classification")
    assert torch.equal(model.classifier.weight, own.classifier.weight)
    assert not close(*(zoo.logits(m, zoo.batch(Task.named("token-classification"))) for m in (model, own)))


@pytest.mark.parametrize(("architecture", "kind"), make.FLEXIBLE_CELLS[:2])
def test_a_head_of_numbered_layers_is_read_where_ours_has_the_same(architecture: str, kind: str) -> None:
    folder, task = FIXTURES / architecture / f"flexible_{kind}", make.FLEXIBLE[kind]
    inputs = {k: v for k, v in zoo.batch(Task.named(task)).items() if k in ("input_ids", "attention_mask")}
    assert close(zoo.logits(load(base(architecture, task), folder), inputs), expected(folder))


def test_a_head_with_another_activation_is_refused() -> None:
    model = base("distilbert", "sequence-classification")
    with pytest.raises(UnsupportedError, match=r"adapter-wrong-base.*head"):
        load(model, FIXTURES / "distilbert" / "flexible_classification")


def test_safetensors_are_read_where_they_are(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    tensors = torch.load(folder / "pytorch_adapter.bin", weights_only=True)
    (folder / "pytorch_adapter.bin").unlink()
    save_file(tensors, folder / "adapter.safetensors")
    model = load(base("bert", "sequence-classification"), folder)
    assert close(zoo.logits(model, zoo.batch(CLASSIFY)), expected(folder))


# ---------------------------------------------------------------------- writing
@pytest.mark.parametrize(("architecture", "task", "kind"), FOLDERS)
def test_what_is_written_is_what_the_library_wrote(architecture: str, task: str, kind: str, tmp_path: Path) -> None:
    """The same names, values and settings, file for file, so that the library reads it as its own."""
    folder = FIXTURES / architecture / kind
    model = load(base(architecture, task), folder, task=task)
    adapterhub.write(model, tmp_path)
    theirs, ours = (torch.load(f / "pytorch_adapter.bin", weights_only=True) for f in (folder, tmp_path))
    assert {k.replace(".trained.", ".default.") for k in theirs} == ours.keys()
    assert all(torch.equal(ours[k.replace(".trained.", ".default.")], v) for k, v in theirs.items())
    before, after = (json.loads((f / "adapter_config.json").read_text()) for f in (folder, tmp_path))
    shared = before["config"].keys() & after["config"].keys()
    assert {k: before["config"][k] for k in shared} == {k: after["config"][k] for k in shared}
    assert {k: v for k, v in before.items() if k not in ("config", "name", "model_name")}.items() <= after.items()
    if (folder / "pytorch_model_head.bin").is_file():
        head = torch.load(tmp_path / "pytorch_model_head.bin", weights_only=True)
        assert all(torch.equal(head[k], v) for k, v in torch.load(folder / "pytorch_model_head.bin").items())
    again = load(base(architecture, task), tmp_path, task=task)
    assert close(zoo.logits(again, zoo.batch(Task.named(task))), expected(folder))


@pytest.mark.parametrize("settings", [{"ln_before": True, "scaling": "channel"}, {"ln_after": True, "leave_out": (0,)},
                                      {"reduction_factor": {"0": 4.0, "default": 8.0}, "residual_before_ln": "post_add"}])  # fmt: skip
def test_every_setting_comes_back_from_its_format(settings: dict[str, Any], tmp_path: Path) -> None:
    method = BottleneckAdapter(**settings)
    model = prepare(zoo.build("bert", CLASSIFY), method, CLASSIFY)
    zoo.train(model, method.parameter_groups(model, 1e-2, 0.0), zoo.batch(CLASSIFY))
    again = load(zoo.build("bert", CLASSIFY), adapterhub.write(model, tmp_path))
    assert close(zoo.logits(again, zoo.batch(CLASSIFY)), zoo.logits(model, zoo.batch(CLASSIFY)))
    what = prepared(again)
    assert what is not None
    assert what.method == method


def test_a_model_that_the_library_does_not_know_is_not_written(tmp_path: Path) -> None:
    model = prepare(zoo.build("qwen3", Task.named("causal-lm")), BottleneckAdapter(), "causal-lm")
    with pytest.raises(UnsupportedError, match="adapterhub-model"):
        adapterhub.write(model, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_an_adapter_after_alberts_attention_is_another_function_there(tmp_path: Path) -> None:
    model = prepare(zoo.build("albert", CLASSIFY), BottleneckAdapter(variant="houlsby"), CLASSIFY)
    with pytest.raises(UnsupportedError, match="adapterhub-model"):
        adapterhub.write(model, tmp_path / "no")


# ---------------------------------------------------------------------- refusals
class Dangerous:
    def __reduce__(self) -> Any:
        return (print, ("ran",))


def set_config(folder: Path, **values: Any) -> None:
    data = json.loads((folder / "adapter_config.json").read_text())
    data["config"] |= values
    (folder / "adapter_config.json").write_text(json.dumps(data))


def broken_weights(folder: Path) -> None:
    whole = (folder / "pytorch_adapter.bin").read_bytes()
    (folder / "pytorch_adapter.bin").write_bytes(whole[: len(whole) // 2])


def pickled(folder: Path) -> None:
    torch.save({"a": torch.ones(1), "b": Dangerous()}, folder / "pytorch_adapter.bin")


def pickled_bare(folder: Path) -> None:
    (folder / "pytorch_adapter.bin").write_bytes(pickle.dumps(Dangerous()))


def no_tensors(folder: Path) -> None:
    torch.save({"a": [1, 2]}, folder / "pytorch_adapter.bin")


def one_missing(folder: Path) -> None:
    tensors = torch.load(folder / "pytorch_adapter.bin", weights_only=True)
    tensors.pop(next(iter(tensors)))
    torch.save(tensors, folder / "pytorch_adapter.bin")


def layer_too_many(folder: Path) -> None:
    tensors = torch.load(folder / "pytorch_adapter.bin", weights_only=True)
    more = {k.replace("layer.1", "layer.7"): v for k, v in tensors.items() if "layer.1" in k}
    torch.save({**tensors, **more}, folder / "pytorch_adapter.bin")


def head_of_three(folder: Path) -> None:
    torch.save(
        {"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.ones(3)}, folder / "pytorch_model_head.bin"
    )


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (broken_weights, "adapter-corrupted"),
        (pickled, "adapter-pickled"),
        (pickled_bare, "adapter-pickled"),
        (no_tensors, "adapter-pickled"),
        (lambda f: (f / "pytorch_adapter.bin").unlink(), "adapter-corrupted"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter-corrupted"),
        (lambda f: set_config(f, reduction_factor="much"), "adapter-corrupted"),
        (lambda f: set_config(f, reduction_factor=4), "adapter-wrong-base"),
        (one_missing, "adapter-wrong-base"),
        (layer_too_many, "adapter-wrong-base"),
        (head_of_three, "adapter-wrong-base"),
        (lambda f: set_config(f, phm_layer=True), "adapterhub-setting"),
        (lambda f: set_config(f, architecture="lora"), "adapterhub-setting"),
        (lambda f: set_config(f, inv_adapter="nice"), "adapterhub-setting"),
        (lambda f: set_config(f, brand_new=1), "adapterhub-setting"),
    ],
)
def test_what_does_not_fit_is_one_clear_error_and_the_model_is_left_alone(
    damage: Any, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(tmp_path)
    damage(folder)
    model = base("bert", "sequence-classification")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(TunekitError) as caught:
        load(model, folder)
    assert caught.value.codes == (code,)
    assert "ran" not in capsys.readouterr().out
    assert not list(sites(model))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert model.state_dict().keys() == before.keys()


def test_another_architecture_is_refused() -> None:
    model = base("roberta", "sequence-classification")
    with pytest.raises(UnsupportedError, match=r"adapter-wrong-base.*`bert`"):
        load(model, FIXTURES / "bert" / "seq_bn")
    assert not list(sites(model))
