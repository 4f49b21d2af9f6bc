"""Several adapters on one model: switching is exact, brings the head along, and refuses what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tunekit
import zoo
from tunekit.attach import load, prepare, prepared, unload
from tunekit.bottleneck import DEFAULT, sites
from tunekit.errors import InvalidError, TunekitError, UnsupportedError
from tunekit.methods.adapter_fusion import AdapterFusion
from tunekit.methods.bottleneck_adapter import BottleneckAdapter
from tunekit.methods.lora import Lora
from tunekit.task import Task

CLASSIFY, WRITE = Task.named("sequence-classification"), Task.named("causal-lm")
INPUTS = zoo.batch(CLASSIFY)


def saved(folder: Path, name: str, method: Any = None, seed: int = 1, **base: Any) -> Path:
    """The folder of an adapter with a head of its own."""
    method = method or BottleneckAdapter()
    model = prepare(zoo.build("bert", CLASSIFY, **base), method, CLASSIFY)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder / name)
    return folder / name


def alone(folder: Path) -> torch.Tensor:
    return zoo.logits(load(zoo.build("bert", CLASSIFY), folder), INPUTS)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-5


@pytest.mark.parametrize("method", [BottleneckAdapter(), Lora(r=4)], ids=["bottleneck", "peft"])
def test_switching_gives_exactly_what_each_adapter_gives_alone(method: Any, tmp_path: Path) -> None:
    first, second = saved(tmp_path, "first", method, 1), saved(tmp_path, "second", method, 2)
    model = load(zoo.build("bert", CLASSIFY), first, second)
    assert tunekit.adapter_names(model) == (DEFAULT, "second")
    expected = {DEFAULT: alone(first), "second": alone(second)}
    assert not close(*expected.values())
    for name in (DEFAULT, "second", DEFAULT, "second"):
        tunekit.set_adapter(model, name)
        assert tunekit.active_adapters(model) == (name,)
        assert close(zoo.logits(model, INPUTS), expected[name])


def test_the_variants_may_differ(tmp_path: Path) -> None:
    folders = [
        saved(tmp_path, v, BottleneckAdapter(variant=v), i) for i, v in enumerate(("pfeiffer", "houlsby", "parallel"))
    ]  # type: ignore[arg-type]
    model = load(zoo.build("bert", CLASSIFY), *folders)
    for name, folder in zip((DEFAULT, "houlsby", "parallel"), folders, strict=True):
        assert close(zoo.logits(tunekit.set_adapter(model, name), INPUTS), alone(folder))


def test_only_the_last_active_adapter_and_the_head_learn(tmp_path: Path) -> None:
    model = load(zoo.build("bert", CLASSIFY), saved(tmp_path, "first"), saved(tmp_path, "second", seed=2))
    tunekit.set_adapter(model, DEFAULT, "second")
    learnt = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in learnt if "bottlenecks" in n} == {
        n for n, _ in model.named_parameters() if ".adapters.second." in n
    }
    assert any("classifier" in n for n in learnt)
    method = BottleneckAdapter()
    assert not zoo.train(model, method.parameter_groups(model, 1e-2, 0.0), INPUTS)["without_gradient"]


def test_a_stack_acts_in_the_order_it_is_named(tmp_path: Path) -> None:
    first = saved(tmp_path, "first", BottleneckAdapter(variant="houlsby"), 1)
    second = saved(tmp_path, "second", BottleneckAdapter(variant="houlsby"), 2)
    model = load(zoo.build("bert", CLASSIFY), first, second)
    one = zoo.logits(tunekit.set_adapter(model, DEFAULT, "second"), INPUTS)
    site = next(s for s in sites(model) if s.at.location == "feed_forward")
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, adapter in site.adapters.items():
        adapter.register_forward_hook(lambda m, args, out, name=name: seen.update({name: (args[0], out)}))
    zoo.logits(model, INPUTS)
    assert close(seen["second"][0], seen[DEFAULT][1])
    assert not close(one, zoo.logits(tunekit.set_adapter(model, "second", DEFAULT), INPUTS))


def test_what_was_learnt_since_survives_a_switch_and_is_saved_by_itself(tmp_path: Path) -> None:
    model = load(zoo.build("bert", CLASSIFY), saved(tmp_path, "first"))
    tunekit.add_adapter(model, "fresh", BottleneckAdapter(variant="houlsby"))
    tunekit.set_adapter(model, "fresh")
    zoo.train(model, BottleneckAdapter().parameter_groups(model, 1e-2, 0.0), INPUTS)
    expected = zoo.logits(model, INPUTS)
    tunekit.set_adapter(model, DEFAULT)
    assert close(zoo.logits(model, INPUTS), alone(tmp_path / "first"))
    tunekit.set_adapter(model, "fresh")
    assert close(zoo.logits(model, INPUTS), expected)
    model.save_pretrained(tmp_path / "fresh")
    assert close(alone(tmp_path / "fresh"), expected)
    assert prepared(load(zoo.build("bert", CLASSIFY), tmp_path / "fresh")).method.variant == "houlsby"


def test_an_average_is_the_average_of_parameters_and_heads(tmp_path: Path) -> None:
    folders = [saved(tmp_path, str(i), seed=i) for i in (1, 2)]
    model = load(zoo.build("bert", CLASSIFY), *folders)
    tunekit.set_adapter(tunekit.add_weighted_adapter(model, [DEFAULT, "2"], [0.25, 0.75], "mean"), "mean")
    states = [dict(load(zoo.build("bert", CLASSIFY), f).named_parameters()) for f in folders]
    found = dict(model.named_parameters())
    names = [n for n in states[0] if ".adapters." in n or "classifier" in n or "pooler" in n]
    for n in names:
        expected = 0.25 * states[0][n] + 0.75 * states[1][n]
        assert torch.allclose(found[n.replace(".default.", ".mean.")], expected, atol=1e-6)


def test_a_deleted_adapter_is_gone_and_the_others_stay(tmp_path: Path) -> None:
    first = saved(tmp_path, "first")
    model = load(zoo.build("bert", CLASSIFY), first, saved(tmp_path, "second", seed=2))
    tunekit.delete_adapter(model, "second")
    assert tunekit.adapter_names(model) == (DEFAULT,)
    assert not [n for n, _ in model.named_parameters() if "second" in n]
    assert close(zoo.logits(model, INPUTS), alone(first))


def test_unloaded_the_base_is_back(tmp_path: Path) -> None:
    base = zoo.build("bert", CLASSIFY)
    expected, attributes = zoo.logits(base, INPUTS), set(vars(base))
    model = load(base, saved(tmp_path, "first"), saved(tmp_path, "second", seed=2))
    assert torch.equal(zoo.logits(unload(tunekit.set_adapter(model, "second")), INPUTS), expected)
    assert set(vars(base)) == attributes


def test_adapters_of_adapterhub_stand_beside_ours(tmp_path: Path) -> None:
    folder = Path(__file__).parent.parent / "fixtures" / "adapterhub" / "bert" / "par_bn"
    model = load(zoo.build("bert", CLASSIFY), saved(tmp_path, "first"), folder)
    assert tunekit.adapter_names(model) == (DEFAULT, "par_bn")
    tunekit.set_adapter(model, "par_bn")
    assert not close(zoo.logits(model, INPUTS), alone(tmp_path / "first"))


# ---------------------------------------------------------------------- refusals
def two(folder: Path) -> nn.Module:
    return load(zoo.build("bert", CLASSIFY), saved(folder, "first"), saved(folder, "second", seed=2))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m, f: tunekit.set_adapter(m, "secnd"), "adapter-unknown"),
        (lambda m, f: tunekit.set_adapter(m), "adapter-name"),
        (lambda m, f: tunekit.add_adapter(m, "second", BottleneckAdapter()), "adapter-same-name"),
        (lambda m, f: tunekit.add_adapter(m, "a.b", BottleneckAdapter()), "adapter-name"),
        (lambda m, f: tunekit.add_adapter(m, "x", f / "nowhere"), "adapter-missing"),
        (lambda m, f: tunekit.add_adapter(m, "x", Lora()), "adapter-kind"),
        (lambda m, f: tunekit.add_adapter(m, "x", saved(f, "lora", Lora(r=2))), "adapter-missing"),
        (
            lambda m, f: tunekit.add_adapter(m, "x", BottleneckAdapter(locations=("cross_attention",))),
            "adapter-location",
        ),
        (lambda m, f: tunekit.delete_adapter(m, DEFAULT), "adapter-active"),
        (lambda m, f: tunekit.delete_adapter(m, "x"), "adapter-unknown"),
        (lambda m, f: tunekit.add_weighted_adapter(m, [DEFAULT], [1.0, 2.0], "x"), "adapter-weights"),
        (lambda m, f: tunekit.add_weighted_adapter(m, ["y"], [1.0], "x"), "adapter-unknown"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_left_alone(change: Any, code: str, tmp_path: Path) -> None:
    model = two(tmp_path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    learnt = {n for n, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(TunekitError) as caught:
        change(model, tmp_path)
    assert caught.value.codes == (code,)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == learnt


def test_an_adapter_of_another_depth_does_not_fit(tmp_path: Path) -> None:
    model = load(zoo.build("bert", CLASSIFY), saved(tmp_path, "first", BottleneckAdapter(leave_out=(0,))))
    folder = saved(tmp_path, "second", BottleneckAdapter())
    import json

    config = json.loads((folder / "tunekit.json").read_text())
    config["method"]["leave_out"] = [1]
    (folder / "tunekit.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="adapter-wrong-base"):
        tunekit.add_adapter(model, "second", folder)
    assert tunekit.adapter_names(model) == (DEFAULT,)


def test_different_networks_have_no_sum(tmp_path: Path) -> None:
    model = two(tmp_path)
    tunekit.add_adapter(model, "wide", BottleneckAdapter(reduction_factor=2.0))
    with pytest.raises(UnsupportedError, match="adapter-settings"):
        tunekit.add_weighted_adapter(model, [DEFAULT, "wide"], [0.5, 0.5], "x")


def test_a_second_folder_that_does_not_fit_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    base = zoo.build("bert", CLASSIFY)
    with pytest.raises(InvalidError, match="adapter-same-name"):
        load(base, saved(tmp_path, "first"), saved(tmp_path, "default", seed=2))
    assert not list(sites(base))
    assert prepared(base) is None


def test_fused_adapters_are_not_switched(tmp_path: Path) -> None:
    paths = tuple(str(saved(tmp_path, str(i), seed=i)) for i in (1, 2))
    model = prepare(zoo.build("bert", CLASSIFY), AdapterFusion(adapters=paths), CLASSIFY)
    with pytest.raises(UnsupportedError, match="adapter-several"):
        tunekit.set_adapter(model, "1")


def test_a_model_without_an_adapter_is_told_how_to_get_one() -> None:
    with pytest.raises(UnsupportedError, match=r"adapter-several.*tunekit\.prepare"):
        tunekit.add_adapter(zoo.build("bert", CLASSIFY), "x", BottleneckAdapter())
