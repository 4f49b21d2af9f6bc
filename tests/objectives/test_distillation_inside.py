"""Hidden states and attention of matched layers: an independent float64 reference, and a projection that learns and is not shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distilled import ROWS, batch_of, pair
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
)

import tunekit
import zoo
from tunekit.contracts import OWN_MODULE
from tunekit.errors import TunekitError
from tunekit.methods.bitfit import BitFit
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.methods.partial import Partial
from tunekit.methods.prompt_tuning import PromptTuning
from tunekit.objectives._features import layer_map
from tunekit.objectives.distillation import Distillation
from tunekit.own_module import FILE, own_module, own_parameters
from tunekit.task import Task

DEEPER = {
    "bert": {"num_hidden_layers": 4, "hidden_size": 48, "num_attention_heads": 6},
    "llama": {"num_hidden_layers": 4, "hidden_size": 48, "num_attention_heads": 6},
    "t5": {"num_layers": 4, "num_decoder_layers": 4, "d_model": 48, "num_heads": 6},
    "bart": {"encoder_layers": 4, "decoder_layers": 4, "d_model": 48, "encoder_attention_heads": 6, "decoder_attention_heads": 6},
}  # fmt: skip
KINDS = [("bert", "sequence-classification"), ("bert", "token-classification"), ("bert", "question-answering"),
         ("bert", "multiple-choice"), ("llama", "causal-lm"), ("t5", "seq2seq"), ("bart", "seq2seq")]  # fmt: skip


def matched(architecture: str, task: str) -> tuple[Any, Any]:
    student, teacher = pair(architecture, task, DEEPER[architecture])
    for model in (student, teacher):
        for part in (model, *(m for m in model.modules() if isinstance(m, PreTrainedModel))):
            part.set_attn_implementation("eager")  # transformers 5.17 leaves T5's stacks out
        for p in model.parameters():
            p.data.div_(3.0 if p.dim() > 1 else 1.0)
    return student.train(), teacher


def answered(model: Any, batch: dict[str, torch.Tensor]) -> Any:
    asked = {k: v for k, v in batch.items() if "labels" not in k and "positions" not in k}
    if model.config.is_encoder_decoder:
        asked["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    with torch.no_grad():
        return model(**asked, output_hidden_states=True, output_attentions=True)


def reference(
    kind: str, student: Any, teacher: Any, batch: dict[str, torch.Tensor], maps: Any, chosen: tuple[int, ...]
) -> float:
    """Item by item, token by token, in float64."""
    s, t = answered(student, batch), answered(teacher, batch)
    what = "attentions" if kind == "attention" else "hidden_states"
    stacks = ("encoder", "decoder") if student.config.is_encoder_decoder else ("layers",)
    per_row: Any = 0
    for stack in stacks:
        a, b = (o[what if stack == "layers" else f"{stack}_{what}"] for o in (s, t))
        mask = batch["labels"].ne(-100).long() if stack == "decoder" else batch["attention_mask"]
        mask = mask.reshape(-1, mask.shape[-1]).numpy()
        skip = 0 if kind == "attention" else 1
        layers = []
        for i, j in enumerate(chosen):
            x, y = (v.double().numpy() for v in (a[i + skip], b[j - 1 + skip]))
            rows = []
            for r in range(len(mask)):
                tokens = []
                for q in range(mask.shape[1]):
                    if not mask[r, q]:
                        continue
                    if kind == "attention":
                        p, o = y[r, :, q].mean(0), x[r, :, q].mean(0)
                        real = p > 0
                        tokens.append(float((p[real] * np.log((p[real] + 1e-9) / (o[real] + 1e-9))).sum()))
                        continue
                    mine = maps.maps[stack].weight.detach().double().numpy() @ x[r, q]
                    if kind == "mse":
                        tokens.append(float(((mine - y[r, q]) ** 2).mean()))
                    else:
                        tokens.append(float(1 - mine @ y[r, q] / np.linalg.norm(mine) / np.linalg.norm(y[r, q])))
                rows.append(np.mean(tokens) if tokens else 0.0)
            layers.append(rows)
        per_row = per_row + np.mean(layers, 0) / len(stacks)
    items = batch["labels"] if "labels" in batch else batch["start_positions"]
    if student.config.architectures is None and isinstance(items, torch.Tensor) and batch["input_ids"].ndim == 3:
        per_row = per_row.reshape(len(batch["input_ids"]), -1).mean(1)
    shifted = items[:, 1:] if not student.config.is_encoder_decoder and "CausalLM" in type(student).__name__ else items
    counts = shifted.ne(-100).reshape(len(shifted), -1).sum(1).numpy()
    return float((per_row * counts).sum() / counts.sum())


@pytest.mark.parametrize("kind", ["mse", "cosine", "attention"])
@pytest.mark.parametrize(("architecture", "task"), KINDS)
def test_the_distance_inside_is_that_of_an_independent_float64_reference(
    architecture: str, task: str, kind: str
) -> None:
    student, teacher = matched(architecture, task)
    batch = batch_of(task)
    plain = Distillation(hard_weight=0.4).taught_by(teacher)
    weights = {"attention_weight": 0.7} if kind == "attention" else {"hidden_weight": 0.7, "hidden_loss": kind}
    objective = Distillation(hard_weight=0.4, positions_at_once=7, **weights).taught_by(teacher)
    objective.ready(student)
    maps = own_module(student)
    assert (maps is None) == (kind == "attention")
    with torch.no_grad():
        loss, outputs = objective.loss(student, batch)
        got = (loss - plain.loss(student, batch)[0]).item()
    assert got == pytest.approx(0.7 * reference(kind, student, teacher, batch, maps, (2, 4)), rel=1e-5, abs=1e-5)
    assert not any("hidden_states" in k or "attentions" in k for k in outputs)


@pytest.mark.parametrize(("architecture", "task"), KINDS)
def test_the_gradient_of_a_batch_is_the_sum_over_its_parts(architecture: str, task: str) -> None:
    student, teacher = matched(architecture, task)
    objective = Distillation(hidden_weight=1.0, attention_weight=0.5, positions_at_once=6).taught_by(teacher)
    objective.ready(student)
    batch = batch_of(task)

    def gradients(parts: list[dict[str, torch.Tensor]], number: Any) -> list[torch.Tensor]:
        student.zero_grad()
        for part in parts:
            objective.loss(student, part, number)[0].backward()
        return [p.grad.clone() for p in student.parameters() if p.grad is not None]

    labels = batch.get("labels", batch["input_ids"][:, :1])
    number = (labels[:, 1:] if task == "causal-lm" else labels).ne(-100).sum()
    rows = len(batch["input_ids"])
    halves = [{k: v[i : i + rows // 2] for k, v in batch.items()} for i in (0, rows // 2)]
    for a, b in zip(gradients([batch], None), gradients(halves, number), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, a.abs().max().item()))
    assert all(p.grad.any() for p in own_parameters(student))
    assert all(p.grad is None for p in teacher.parameters())


def test_layers_are_spread_evenly_or_as_they_are_named() -> None:
    assert [layer_map(*n) for n in ((3, 6), (6, 12), (4, 6), (6, 6), (4, 2), (1, 12))] == [
        (2, 4, 6), (2, 4, 6, 8, 10, 12), (2, 3, 5, 6), (1, 2, 3, 4, 5, 6), (1, 1, 2, 2), (12,),
    ]  # fmt: skip
    student, teacher = matched("bert", "sequence-classification")
    batch = batch_of("sequence-classification")
    objective = Distillation(hard_weight=0.4, hidden_weight=1.0, layer_map=(1, 3)).taught_by(teacher)
    objective.ready(student)
    with torch.no_grad():
        got = (objective.loss(student, batch)[0] - Distillation(hard_weight=0.4).taught_by(teacher).loss(student, batch)[0]).item()  # fmt: skip
    want = reference("mse", student, teacher, batch, own_module(student), (1, 3))
    assert got == pytest.approx(want, rel=1e-5)
    for wrong in ((1,), (1, 9)):
        with pytest.raises(TunekitError) as caught:
            Distillation(hidden_weight=1.0, layer_map=wrong).taught_by(teacher).ready(student)
        assert caught.value.codes == ("distillation-layer-map",)


def test_attention_that_is_not_told_is_refused() -> None:
    student, teacher = matched("bert", "sequence-classification")
    objective = Distillation(attention_weight=1.0).taught_by(teacher)
    for model in (student, teacher):
        model.set_attn_implementation("sdpa")
        with pytest.raises(TunekitError) as caught:
            objective.ready(student)
        assert caught.value.codes == ("distillation-attention-kernel",)
        model.set_attn_implementation("eager")


def test_a_prompt_tuned_student_is_compared_at_the_words_it_shares_with_its_teacher() -> None:
    student, teacher = matched("bert", "sequence-classification")
    tuned = tunekit.prepare(student, PromptTuning(num_virtual_tokens=5), "sequence-classification").train()
    objective = Distillation(hidden_weight=1.0, attention_weight=1.0).taught_by(teacher)
    objective.ready(tuned)
    loss = objective.loss(tuned, batch_of("sequence-classification"))[0]
    assert loss.isfinite()
    loss.backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)
    assert all(p.grad.any() for p in own_parameters(tuned))


# ---------------------------------------------------------------- through the Trainer
@pytest.fixture(scope="module")
def wide(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a wider, deeper teacher of the rows' two classes."""
    torch.manual_seed(2)
    names = {0: "no", 1: "yes"}
    config = BertConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, vocab_size=160, max_position_embeddings=64,
        id2label=names, label2id={"no": 0, "yes": 1}, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wide")
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    return str(folder)


def plan_of(model: str, teacher: str, folder: Path, method: Any, **values: Any) -> tunekit.Plan:
    return tunekit.Plan(
        model=model, task="sequence-classification", method=method, output_dir=str(folder), learning_rate=3e-3, warmup=0.0,
        lr_scheduler_type="constant", per_device_train_batch_size=4, objective=Distillation(teacher=teacher, hidden_weight=1.0), **values,
    )  # fmt: skip


METHODS = {"full": Full(), "lora": Lora(r=4), "bitfit": BitFit(), "partial": Partial(last_layers=1), "prompt": PromptTuning(num_virtual_tokens=4)}  # fmt: skip


SLOW = ("bitfit", "partial", "prompt")


@pytest.mark.parametrize("method", [pytest.param(m, id=n, marks=[pytest.mark.slow] * (n in SLOW)) for n, m in METHODS.items()])  # fmt: skip
def test_the_projection_learns_is_resumed_bit_for_bit_and_is_not_shipped(
    method: Any, tiny_encoder: str, wide: str, tmp_path: Path
) -> None:
    def trained(folder: Path, resume: bool) -> Any:
        plan = plan_of(tiny_encoder, wide, folder, method, max_steps=6)
        trainer = tunekit.trainer(plan, train_dataset=ROWS, disable_tqdm=True, save_strategy="steps", save_steps=3, overwrite=resume)  # fmt: skip
        before = [p.detach().clone() for p in own_parameters(trainer.model)]
        trainer.train(resume_from_checkpoint=resume or None)
        return trainer, before

    whole, before = trained(tmp_path / "whole", False)
    after = own_parameters(whole.model)
    held = {id(p) for g in whole.optimizer.param_groups for p in g["params"]}
    assert len(after) == 1
    assert all(id(p) in held for p in after)
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert (checkpoint / FILE).is_file()
    import shutil

    shutil.copytree(checkpoint, tmp_path / "cut" / "checkpoint-3")
    resumed, _ = trained(tmp_path / "cut", True)
    assert resumed.state.global_step == 6
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    whole.save_model(str(tmp_path / "shipped"))
    for folder in (tmp_path / "shipped", checkpoint):
        for file in (f for f in folder.glob("*.safetensors") if f.name != FILE):
            assert not [k for k in load_file(file) if OWN_MODULE in k]
    assert not (tmp_path / "shipped" / FILE).exists()
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    source = tmp_path / "shipped" if isinstance(method, Full) else tiny_encoder
    base = AutoModelForSequenceClassification.from_pretrained(source, **names)
    loaded = base if isinstance(method, Full) else tunekit.load(base, tmp_path / "shipped")
    batch = zoo.batch(Task.named("sequence-classification"))
    assert torch.allclose(zoo.logits(loaded, batch), zoo.logits(whole.model, batch), atol=1e-6)


def test_the_simulator_sees_the_projection_and_the_states(tiny_encoder: str, wide: str, tmp_path: Path) -> None:
    plan = plan_of(tiny_encoder, wide, tmp_path, Full(), max_length=32)
    plain = tunekit.estimate_memory(plan.replace(objective=Distillation(teacher=wide)), "cpu")
    inside = tunekit.estimate_memory(plan, "cpu")
    assert inside.parts["weights"] - plain.parts["weights"] == pytest.approx(32 * 48 * 4, rel=0.05, abs=512)
    cached = tunekit.estimate_memory(plan.replace(objective=Distillation(teacher=wide, cache="x")), "cpu")
    assert cached.parts["weights"] < plain.parts["weights"]
