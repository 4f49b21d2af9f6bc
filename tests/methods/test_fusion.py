"""AdapterFusion: it computes what the paper says, learns alone, brings its adapters along, and refuses what cannot be fused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import plain_runs
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import zoo
from tunekit import adapterhub_fusion
from tunekit.attach import load, prepare, prepared, unload
from tunekit.bottleneck import sites
from tunekit.errors import InvalidError, TunekitError, UnsupportedError
from tunekit.fusion import attention_weights, fusions, mean_weights
from tunekit.methods.adapter_fusion import AdapterFusion
from tunekit.methods.bottleneck_adapter import BottleneckAdapter
from tunekit.structure import facts_of, head_parameters
from tunekit.task import Task

FIXTURES = Path(__file__).parent.parent / "fixtures" / "adapterhub"
sys.path[:0] = [str(FIXTURES), str(Path(__file__).parent.parent / "contracts")]
import make  # noqa: E402
from test_method_in_trainer import learnt, trainer_for  # noqa: E402

CLASSIFY, WRITE, REWRITE = (Task.named(n) for n in ("sequence-classification", "causal-lm", "seq2seq"))
PAIRS = [
    ("bert", CLASSIFY),
    ("deberta-v2", CLASSIFY),
    ("gpt2", CLASSIFY),
    ("mixtral", WRITE),
    ("t5", REWRITE),
    ("bart", REWRITE),
]


def trained(
    folder: Path, architecture: str, task: Task, method: BottleneckAdapter, seed: int, num_labels: int = 2
) -> str:
    """The folder of an adapter that is far from doing nothing."""
    model = prepare(zoo.build(architecture, task, num_labels=num_labels), method, task)
    torch.manual_seed(seed)
    with torch.no_grad():
        for site in sites(model):
            for p in site.parameters():
                nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder / str(seed))
    return str(folder / str(seed))


def two(folder: Path, architecture: str = "bert", task: Task = CLASSIFY, **settings: Any) -> AdapterFusion:
    """A fusion of two adapters of different widths; the first one's head has other labels."""
    first = BottleneckAdapter(**settings)
    labels = 3 if task is CLASSIFY else 2
    second = BottleneckAdapter(**{**settings, "reduction_factor": 4.0})
    paths = (trained(folder, architecture, task, first, 1, labels), trained(folder, architecture, task, second, 2))
    return AdapterFusion(adapters=paths)


def far(model: nn.Module) -> nn.Module:
    """With a fusion that prefers one adapter to the other."""
    torch.manual_seed(5)
    with torch.no_grad():
        for fusion in fusions(model).values():
            for p in fusion.parameters():
                nn.init.normal_(p, std=0.3)
    return model.eval()


def close(a: torch.Tensor, b: torch.Tensor, by: float = 1e-5) -> bool:
    return float((a - b).detach().abs().max()) <= by


# ---------------------------------------------------------------------- learning
@pytest.mark.parametrize("variant", ["dynamic", "static"])
@pytest.mark.parametrize(("architecture", "task"), PAIRS)
def test_fusion_and_head_learn_alone_and_come_back_with_their_adapters(
    architecture: str, task: Task, variant: Any, tmp_path: Path
) -> None:
    given = two(tmp_path / "in", architecture, task)
    method = AdapterFusion(adapters=given.adapters, variant=variant)
    base = zoo.build(architecture, task)
    heads = head_parameters(base, task)
    model = prepare(base, method, task)
    trains = method.trainable_names(model)
    assert heads <= trains
    assert all(".fusion." in n for n in trains - heads)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    seen = zoo.train(model, method.parameter_groups(model, 1e-2, 0.0), zoo.batch(task))
    assert seen["without_gradient"] == set()
    assert len(trains - seen["moved"]) <= 0.1 * len(trains)
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} <= trains
    model.save_pretrained(tmp_path / "out")
    shutil.rmtree(tmp_path / "in")
    again = load(zoo.build(architecture, task), tmp_path / "out")
    assert close(zoo.logits(again, zoo.batch(task)), zoo.logits(model, zoo.batch(task)))
    assert method.trainable_names(again) == trains
    assert prepared(again).method == method


@pytest.mark.parametrize("settings", [{"variant": "houlsby"}, {"variant": "parallel"}, {"residual_before_ln": False}])
def test_every_variant_of_adapter_is_fused(settings: dict[str, Any], tmp_path: Path) -> None:
    method = two(tmp_path, "bart", REWRITE, **settings)
    model = prepare(zoo.build("bart", REWRITE), method, REWRITE)
    assert not zoo.train(model, method.parameter_groups(model, 1e-2, 0.0), zoo.batch(REWRITE))["without_gradient"]


def test_it_resumes_in_a_plain_trainer(tmp_path: Path) -> None:
    method = two(tmp_path / "in")
    whole = trainer_for(prepare(zoo.build("bert", CLASSIFY), method, CLASSIFY), tmp_path / "run")
    whole.train()
    assert load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors").keys() == learnt(whole.model).keys()
    resumed = trainer_for(prepare(zoo.build("bert", CLASSIFY), method, CLASSIFY), tmp_path / "run")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert all(torch.equal(learnt(whole.model)[name], value) for name, value in learnt(resumed.model).items())
    again = load(zoo.build("bert", CLASSIFY), tmp_path / "run" / "checkpoint-4")
    assert close(zoo.logits(again, zoo.batch(CLASSIFY)), zoo.logits(resumed.model, zoo.batch(CLASSIFY)))


def test_the_best_checkpoint_comes_back_at_the_end_of_a_plain_trainer(tmp_path: Path) -> None:
    # Rates far too high from the second step on, so that the first checkpoint is the best one.
    model = prepare(zoo.build("bert", CLASSIFY), two(tmp_path / "in"), CLASSIFY)
    trainer = trainer_for(
        model, tmp_path / "run", load_best_model_at_end=True, eval_strategy="steps", eval_steps=1, save_steps=1,
        learning_rate=1.0, lr_scheduler_type="constant_with_warmup", warmup_steps=2,
    )  # fmt: skip
    trainer.train()
    scores = {s["step"]: s["eval_loss"] for s in trainer.state.log_history if "eval_loss" in s}
    assert len({round(s, 4) for s in scores.values()}) > 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(scores.values()), rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_record_of_a_run_says_which_adapter_each_layer_listens_to(checkpointing: bool, tmp_path: Path) -> None:
    from tunekit.callbacks import RunRecord

    record = RunRecord()
    model = prepare(zoo.build("bert", CLASSIFY), two(tmp_path / "in"), CLASSIFY)
    trainer = trainer_for(far(model), tmp_path / "run", **(plain_runs.checkpointing() if checkpointing else {}))
    trainer.add_callback(record)
    trainer.train()
    found = json.loads((tmp_path / "run" / "record.json").read_text())["fusion"]
    assert found["adapters"] == ["1", "2"]
    assert found["rows"] == len(trainer.train_dataset)
    # The model as it is after the run, over the same rows.
    rows = [trainer.train_dataset[i] for i in range(8)]
    expected = mean_weights(model, {k: torch.stack([r[k] for r in rows]) for k in ("input_ids", "attention_mask")})
    assert [layer["layer"] for layer in found["layers"]] == list(expected)
    for layer in found["layers"]:
        assert layer["shares"] == pytest.approx(expected[layer["layer"]], abs=0.02)
    assert any(abs(layer["shares"][0] - 0.5) > 0.03 for layer in found["layers"])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("architecture", "task"), [("bert", CLASSIFY), ("gpt2", CLASSIFY), ("t5", REWRITE)])
def test_checkpointing_gives_the_same_gradients(architecture: str, task: Task, reentrant: bool, tmp_path: Path) -> None:
    method, found = two(tmp_path, architecture, task), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = far(prepare(zoo.build(architecture, task), method, task)).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
        model(**zoo.batch(task))["loss"].backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.allclose(found[0][k], found[1][k], atol=1e-6) for k in found[0])


def test_it_allocates_the_same_on_weightless_tensors(tmp_path: Path) -> None:
    method = two(tmp_path)
    real = prepare(zoo.build("bert", CLASSIFY), method, CLASSIFY)
    weightless = method.apply(zoo.build("bert", CLASSIFY, device="meta"), CLASSIFY)
    outlines = [{n: (p.shape, p.requires_grad) for n, p in m.named_parameters()} for m in (real, weightless)]
    assert outlines[0] == outlines[1]
    assert all(p.is_meta for p in weightless.parameters())


def test_unloaded_the_base_answers_as_before(tmp_path: Path) -> None:
    base = zoo.build("bert", CLASSIFY)
    expected = zoo.logits(base, zoo.batch(CLASSIFY))
    assert torch.equal(zoo.logits(unload(prepare(base, two(tmp_path), CLASSIFY)), zoo.batch(CLASSIFY)), expected)


def test_the_value_matrix_decays_towards_the_identity(tmp_path: Path) -> None:
    method = two(tmp_path)
    model = prepare(zoo.build("bert", CLASSIFY), method, CLASSIFY)
    groups = method.parameter_groups(model, 1e-3, 0.0)
    values = {id(f.value_change) for f in fusions(model).values()}
    assert {id(p) for g in groups if g["weight_decay"] == 0.01 for p in g["params"]} == values
    assert sum(len(g["params"]) for g in groups) == len(method.trainable_names(model))


# ---------------------------------------------------------------------- what it computes
def test_with_one_adapter_far_ahead_it_is_that_adapter(tmp_path: Path) -> None:
    method, inputs = two(tmp_path), zoo.batch(CLASSIFY)
    for best in (0, 1):
        model = prepare(zoo.build("bert", CLASSIFY), method, CLASSIFY)
        for fusion in fusions(model).values():
            fusion.dropout = _Only(best)
        alone = load(zoo.build("bert", CLASSIFY, num_labels=3 if best == 0 else 2), method.adapters[best])
        assert close(model.bert(inputs["input_ids"])[0], alone.bert(inputs["input_ids"])[0])


class _Only(nn.Module):
    """In place of the dropout on the scores: one adapter, whatever they are."""

    def __init__(self, best: int) -> None:
        super().__init__()
        self.best = best

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -1e4).index_fill(-1, torch.tensor([self.best]), 0.0)


def test_every_token_shares_itself_out_over_the_adapters(tmp_path: Path) -> None:
    model, inputs = far(prepare(zoo.build("bert", CLASSIFY), two(tmp_path), CLASSIFY)).train(), zoo.batch(CLASSIFY)
    weights = attention_weights(model, inputs)
    assert list(weights) == ["bert.encoder.layer.0.feed_forward", "bert.encoder.layer.1.feed_forward"]
    assert all(w.shape == (4, 8, 2) and close(w.sum(-1), torch.ones(4, 8)) for w in weights.values())
    assert any(not close(w, torch.full_like(w, 0.5), by=0.01) for w in weights.values())
    assert model.training
    assert all(f.heard is None and not f.listens for f in fusions(model).values())


def test_the_mean_share_leaves_padding_out(tmp_path: Path) -> None:
    model, inputs = far(prepare(zoo.build("bert", CLASSIFY), two(tmp_path), CLASSIFY)), zoo.batch(CLASSIFY)
    seen = inputs["attention_mask"].bool()
    for name, shares in mean_weights(model, inputs).items():
        assert sum(shares) == pytest.approx(1.0)
        assert shares == pytest.approx(attention_weights(model, inputs)[name][seen].mean(0).tolist(), rel=1e-5)


# ---------------------------------------------------------------------- AdapterHub
@pytest.mark.parametrize(("architecture", "task"), [("bert", CLASSIFY), ("bart", REWRITE)])
def test_a_fusion_of_adapterhub_gives_its_logits_and_its_attention(architecture: str, task: Task) -> None:
    folder = FIXTURES / architecture / "fusion"
    model = load(make.base(architecture, task), folder, task=task)
    expected = load_file(folder / "expected.safetensors")
    assert close(zoo.logits(model, zoo.batch(task)), expected["logits"])
    theirs = [expected[k] for k in sorted(k for k in expected if k.startswith("attention_"))]
    ours = list(attention_weights(model, zoo.batch(task)).values())
    assert theirs
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=False))


@pytest.mark.parametrize(("architecture", "task"), [("bert", CLASSIFY), ("bart", REWRITE)])
def test_what_is_written_of_a_fusion_is_what_the_library_wrote(architecture: str, task: Task, tmp_path: Path) -> None:
    folder = FIXTURES / architecture / "fusion"
    model = load(make.base(architecture, task), folder, task=task)
    adapterhub_fusion.write(model, tmp_path)
    file = Path("first,second") / "pytorch_model_adapter_fusion.bin"
    theirs, ours = (torch.load(f / file, weights_only=True) for f in (folder, tmp_path))
    assert theirs.keys() == ours.keys()
    assert all(close(ours[k], v, by=1e-6) for k, v in theirs.items() if not k.endswith("key.bias"))
    again = load(make.base(architecture, task), tmp_path, task=task)
    assert close(zoo.logits(again, zoo.batch(task)), zoo.logits(model, zoo.batch(task)))


def test_anything_but_a_fusion_of_plain_adapters_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "bert" / "fusion", tmp_path / "copy"))
    text = (folder / "adapter_setup.json").read_text()
    (folder / "adapter_setup.json").write_text(text.replace('"Fuse"', '"Stack"'))
    with pytest.raises(UnsupportedError, match="adapterhub-setup"):
        load(make.base("bert", CLASSIFY), folder)


# ---------------------------------------------------------------------- refusals
def test_what_cannot_be_fused_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    one = trained(tmp_path, "bert", CLASSIFY, BottleneckAdapter(), 1)
    other = trained(tmp_path, "bert", CLASSIFY, BottleneckAdapter(variant="houlsby"), 2)
    base = zoo.build("bert", CLASSIFY)
    for adapters, code in [
        ((), "fusion-adapters"), ((one,), "fusion-adapters"), ((one, str(tmp_path / "no")), "adapter-missing"), ((one, other), "fusion-placement"),
    ]:  # fmt: skip
        refusal = AdapterFusion(adapters=adapters).supports(facts_of(base), CLASSIFY)
        assert refusal is not None
        assert refusal.code == code
        with pytest.raises(TunekitError, match=code):
            prepare(base, AdapterFusion(adapters=adapters), CLASSIFY)
    assert not list(sites(base))


def test_an_adapter_of_another_base_is_refused_and_the_model_left_alone(tmp_path: Path) -> None:
    wide = zoo.config("bert")
    wide.num_hidden_layers = 3
    from transformers import BertForSequenceClassification

    deep = prepare(BertForSequenceClassification(wide), BottleneckAdapter(), CLASSIFY)
    deep.save_pretrained(tmp_path / "deep")
    method = AdapterFusion(
        adapters=(trained(tmp_path, "bert", CLASSIFY, BottleneckAdapter(), 1), str(tmp_path / "deep"))
    )
    base = zoo.build("bert", CLASSIFY)
    with pytest.raises(UnsupportedError, match="adapter-wrong-base"):
        prepare(base, method, CLASSIFY)
    assert not list(sites(base))
    assert prepared(base) is None


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidError) as caught:
        AdapterFusion(adapters=("a", "a"), dropout=1.0, value_decay=-1.0)
    assert caught.value.codes == ("fusion-adapters", "fusion-dropout", "fusion-decay")


def test_adapters_are_called_by_what_tells_their_folders_apart() -> None:
    assert AdapterFusion(adapters=("a/sst2", "b/trec")).names == ("sst2", "trec")
    assert AdapterFusion(adapters=("sst2/checkpoint-4", "trec/checkpoint-4")).names == (
        "sst2-checkpoint-4",
        "trec-checkpoint-4",
    )
