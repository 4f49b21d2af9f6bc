"""Adapters and fusions that do not fit, are not there or are damaged, in our format and AdapterHub's: one clear error each,
by every way onto a model, and the model is what it was."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tunekit
import zoo
from tunekit import adapterhub, adapterhub_fusion
from tunekit.attach import load, prepare, prepared
from tunekit.bottleneck import sites
from tunekit.errors import TunekitError
from tunekit.methods.adapter_fusion import AdapterFusion
from tunekit.methods.bottleneck_adapter import BottleneckAdapter
from tunekit.task import Task

TASK = Task.named("sequence-classification")
FORMATS = ("ours", "adapterhub")
Damage = Callable[[Path], Any]


class Dangerous:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("ran",))


# ---------------------------------------------------------------------- folders
@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ours` and `adapterhub`, in each `one`, `two` and `fusion`."""
    top = tmp_path_factory.mktemp("intact")
    for name in ("one", "two"):
        model = prepare(zoo.build("bert", TASK), BottleneckAdapter(reduction_factor=4.0), TASK)
        model.save_pretrained(top / "ours" / name)
        adapterhub.write(model, top / "adapterhub" / name)
    fusion = AdapterFusion(adapters=tuple(str(top / "ours" / name) for name in ("one", "two")))
    model = prepare(zoo.build("bert", TASK), fusion, TASK)
    model.save_pretrained(top / "ours" / "fusion")
    adapterhub_fusion.write(model, top / "adapterhub" / "fusion")
    return top


def weights(folder: Path) -> Path:
    """The file with an adapter's tensors."""
    return next(folder / n for n in ("pytorch_adapter.bin", "model.safetensors") if (folder / n).exists())


def fusion_weights(folder: Path) -> Path:
    """The file with a fusion's tensors."""
    hub = folder / "one,two" / "pytorch_model_adapter_fusion.bin"
    return hub if hub.exists() else folder / "model.safetensors"


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    if path.suffix == ".bin":
        torch.save(change(torch.load(path, weights_only=True)), path)
    else:
        save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path)


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def narrower(path: Path) -> None:
    """Every matrix of the adapters without its first row."""
    rewritten(
        path, lambda t: {k: v[1:] if v.ndim == 2 and ("adapter" in k or "fusion" in k) else v for k, v in t.items()}
    )


def first_gone(path: Path) -> None:
    rewritten(path, lambda t: dict([(k, v) for k, v in t.items() if "adapter" in k or "fusion" in k][1:]))


def config_of(folder: Path) -> Path:
    names = ("tunekit.json", "adapter_setup.json", "adapter_config.json")
    return next(folder / n for n in names if (folder / n).exists())


def of_roberta(folder: Path) -> None:
    """An adapter of another base in its place."""
    model = prepare(zoo.build("roberta", TASK), BottleneckAdapter(reduction_factor=4.0), TASK)
    is_hub = (folder / "adapter_config.json").exists()
    shutil.rmtree(folder)
    if is_hub:
        adapterhub.write(model, folder)
    else:
        model.save_pretrained(folder)


SINGLE: dict[str, tuple[Damage, str]] = {
    "wrong base": (of_roberta, "adapter-wrong-base"),
    "missing": (shutil.rmtree, "adapter-missing"),
    "empty folder": (lambda f: [p.unlink() for p in f.iterdir() if p.is_file()], "adapter-missing"),
    "mismatched widths": (lambda f: narrower(weights(f)), "adapter-wrong-base"),
    "a tensor gone": (lambda f: first_gone(weights(f)), "adapter-wrong-base"),
    "half a file": (lambda f: halved(weights(f)), "adapter-corrupted"),
    "no bytes": (lambda f: weights(f).write_bytes(b""), "adapter-corrupted"),
    "no weights": (lambda f: weights(f).unlink(), "adapter-corrupted"),
    "half a configuration": (lambda f: halved(config_of(f)), "adapter-corrupted"),
    "a configuration of nothing": (lambda f: config_of(f).write_text("[]"), "adapter-corrupted"),
}
PICKLED: dict[str, tuple[Damage, str]] = {
    "more than tensors": (lambda f: torch.save({"a": torch.ones(1), "b": Dangerous()}, weights(f)), "adapter-pickled"),
    "a bare pickle": (lambda f: weights(f).write_bytes(pickle.dumps(Dangerous())), "adapter-pickled"),
    "lists": (lambda f: torch.save({"a": [1, 2]}, weights(f)), "adapter-pickled"),
    "a head of more": (lambda f: torch.save({"a": Dangerous()}, f / "pytorch_model_head.bin"), "adapter-pickled"),
}
FUSED: dict[str, tuple[Damage, str]] = {
    "missing": (shutil.rmtree, "adapter-missing"),
    "half a file": (lambda f: halved(fusion_weights(f)), "adapter-corrupted"),
    "no weights": (lambda f: fusion_weights(f).unlink(), "adapter-corrupted"),
    "mismatched widths": (lambda f: narrower(fusion_weights(f)), "adapter-wrong-base"),
    "a tensor gone": (lambda f: first_gone(fusion_weights(f)), "adapter-wrong-base"),
    "half a configuration": (lambda f: halved(config_of(f)), "adapter-corrupted"),
}


# ---------------------------------------------------------------------- a model, before and after
def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a refusal must leave alone."""
    return {
        "values": {k: v.clone() for k, v in model.state_dict().items()},
        "learns": {n for n, p in model.named_parameters() if p.requires_grad},
        "modules": [n for n, _ in model.named_modules()],
        "hooks": [(n, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()],
        "prepared": prepared(model),
        "logits": zoo.logits(model, zoo.batch(TASK)),
    }


def assert_untouched(before: dict[str, Any], model: nn.Module) -> None:
    now = state(model)
    for name in ("learns", "modules", "hooks"):
        assert now[name] == before[name]
    assert now["prepared"] is before["prepared"]
    assert now["values"].keys() == before["values"].keys()
    assert all(torch.equal(v, before["values"][k]) for k, v in now["values"].items())
    assert torch.equal(now["logits"], before["logits"])


def refused(code: str, model: nn.Module, act: Callable[[nn.Module], Any], capsys: pytest.CaptureFixture[str]) -> None:
    before = state(model)
    with pytest.raises(TunekitError) as caught:
        act(model)
    assert caught.value.codes == (code,)
    (finding,) = caught.value.findings
    assert finding.seen
    assert finding.fix
    assert "ran" not in capsys.readouterr().out
    assert_untouched(before, model)


def cells() -> list[Any]:
    """Ways onto a model, formats and damages; a fusion has a head of its own and never opens its adapters'."""
    every = [(f, name, what) for f in FORMATS for name, what in SINGLE.items()]
    every += [("adapterhub", name, what) for name, what in PICKLED.items()]
    return [
        pytest.param(way, kind, *what, id=f"{way}-{kind}-{name}")
        for way in ("load", "add", "fuse")
        for kind, name, what in every
        if (way, name) != ("fuse", "a head of more")
    ]


@pytest.mark.parametrize(("way", "kind", "damage", "code"), cells())
def test_an_adapter_that_does_not_fit_is_one_clear_error(
    way: str, kind: str, damage: Damage, code: str, intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(intact / kind / "two", tmp_path / "two"))
    damage(folder)
    if way == "load":
        refused(code, zoo.build("bert", TASK), lambda m: load(m, folder, task=TASK), capsys)
    elif way == "add":
        model = load(zoo.build("bert", TASK), intact / kind / "one", task=TASK)
        refused(code, model, lambda m: tunekit.add_adapter(m, "x", folder), capsys)
    else:
        method = AdapterFusion(adapters=(str(intact / kind / "one"), str(folder)))
        refused(code, zoo.build("bert", TASK), lambda m: prepare(m, method, TASK), capsys)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", FUSED)
def test_a_fusion_that_does_not_fit_is_one_clear_error(
    name: str, kind: str, intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, code = FUSED[name]
    folder = Path(shutil.copytree(intact / kind / "fusion", tmp_path / "fusion"))
    damage(folder)
    refused(code, zoo.build("bert", TASK), lambda m: load(m, folder, task=TASK), capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", SINGLE)
def test_a_fusion_with_a_damaged_adapter_is_one_clear_error(
    name: str, kind: str, intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, code = SINGLE[name]
    folder = Path(shutil.copytree(intact / kind / "fusion", tmp_path / "fusion"))
    damage(folder / "adapters" / "two" if kind == "ours" else folder / "two")
    if kind == "ours" and name == "missing":
        # Without copies it would take the adapters from where they were trained, which is the meaning of a reference.
        saved = json.loads((folder / "tunekit.json").read_text())
        saved["method"]["adapters"] = [str(folder / "gone" / n) for n in ("one", "two")]
        (folder / "tunekit.json").write_text(json.dumps(saved))
    refused(code, zoo.build("bert", TASK), lambda m: load(m, folder, task=TASK), capsys)


def test_a_fusion_of_another_base_is_one_clear_error(
    intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in FORMATS:
        folder = intact / kind / "fusion"
        refused("adapter-wrong-base", zoo.build("roberta", TASK), lambda m, f=folder: load(m, f, task=TASK), capsys)


def test_a_pickled_fusion_is_one_clear_error(intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("a", {"a": Dangerous()}), ("b", {"a": [1]})):
        folder = Path(shutil.copytree(intact / "adapterhub" / "fusion", tmp_path / name))
        torch.save(content, fusion_weights(folder))
        refused("adapter-pickled", zoo.build("bert", TASK), lambda m, f=folder: load(m, f, task=TASK), capsys)


def test_what_is_intact_is_read_by_every_way(intact: Path) -> None:
    for kind in FORMATS:
        model = load(zoo.build("bert", TASK), intact / kind / "one", task=TASK)
        tunekit.add_adapter(model, "x", intact / kind / "two")
        load(zoo.build("bert", TASK), intact / kind / "fusion", task=TASK)
        fused = AdapterFusion(adapters=tuple(str(intact / kind / n) for n in ("one", "two")))
        assert list(sites(prepare(zoo.build("bert", TASK), fused, TASK)))
