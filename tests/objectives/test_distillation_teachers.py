"""Teachers of every kind: with an adapter of their own, quantised, in another dtype, whole and frozen; students on 4-bit bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distilled import ASKED, ROWS, batch_of, pair, writer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import tunekit
from tunekit.errors import TunekitError
from tunekit.methods.bottleneck_adapter import BottleneckAdapter
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.objectives import _liger
from tunekit.objectives._divergence import divergence
from tunekit.objectives._vocabulary import Answers
from tunekit.objectives.distillation import Distillation


def adapted(tiny_encoder: str, folder: Path, method: Any) -> Path:
    """A folder with what a method learnt on the rows."""
    plan = tunekit.Plan(
        model=tiny_encoder, task="sequence-classification", method=method, output_dir=str(folder / "run"), max_steps=15,
        learning_rate=1e-2, warmup=0.0,
    )  # fmt: skip
    trainer = tunekit.trainer(plan, train_dataset=ROWS, disable_tqdm=True)
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    return folder / "adapter"


@pytest.mark.parametrize(
    "method", [Lora(r=4), pytest.param(BottleneckAdapter(), marks=pytest.mark.slow)], ids=["peft", "ours"]
)
def test_a_teacher_brings_its_own_adapter_live_and_into_a_cache(method: Any, tiny_encoder: str, tmp_path: Path) -> None:
    adapter = adapted(tiny_encoder, tmp_path, method)
    settings = {"teacher": tiny_encoder, "teacher_adapter": str(adapter), "hard_weight": 0.0}

    def plan(name: str, **more: Any) -> tunekit.Plan:
        return tunekit.Plan(
            model=tiny_encoder, task="sequence-classification", method=Full(), output_dir=str(tmp_path / name), max_steps=20, learning_rate=3e-3,
            warmup=0.0, objective=Distillation(**settings, **more),
        )  # fmt: skip

    def losses(made: tunekit.Plan) -> tuple[list[float], Any]:
        trainer = tunekit.trainer(made, train_dataset=ROWS, disable_tqdm=True, logging_steps=5)
        trainer.train()
        return [e["loss"] for e in trainer.state.log_history if "loss" in e], trainer

    online, trainer = losses(plan("online"))
    assert online[-1] < 0.5 * online[0]
    teacher = trainer.learning_objective.teacher_of(trainer.model)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    cached = plan("cached", cache=str(tmp_path / "answers"))
    tunekit.teach(cached, train_dataset=ROWS, say=lambda text: None)
    assert losses(cached)[0] == pytest.approx(online, rel=1e-4)


def test_an_adapter_that_does_not_fit_its_teacher_is_refused(
    tiny_encoder: str, tiny_decoder: str, tmp_path: Path
) -> None:
    adapter = adapted(tiny_encoder, tmp_path, Lora(r=4))
    student = LlamaForCausalLM.from_pretrained(tiny_decoder)
    for folder, code in ((str(adapter), "distillation-teacher-adapter"), ("./nowhere", "distillation-teacher-missing")):
        with pytest.raises(TunekitError) as caught:
            Distillation(teacher=tiny_decoder, teacher_adapter=folder).ready(student)
        assert caught.value.codes == (code,)


def test_a_quantised_teacher_teaches_a_student_on_a_quantised_base(tmp_path: Path, tiny_decoder: str) -> None:
    pytest.importorskip("bitsandbytes")
    teacher = writer("causal-lm", tmp_path / "teacher", tiny_decoder)
    plan = tunekit.Plan(
        model=tiny_decoder, task="causal-lm", method=Lora(r=4), quantization="nf4", output_dir=str(tmp_path / "run"), max_steps=12,
        learning_rate=2e-2, warmup=0.0, objective=Distillation(teacher=teacher, teacher_quantization="nf4", hard_weight=0.2),
    )  # fmt: skip
    trainer = tunekit.trainer(plan, train_dataset=ASKED, disable_tqdm=True, logging_steps=4)
    trainer.train()
    taught = trainer.learning_objective.teacher_of(trainer.model)
    kinds = {type(m).__name__ for m in taught.modules()}
    assert "Linear4bit" in kinds
    assert "Linear4bit" in {type(m).__name__ for m in trainer.model.modules()}
    logged = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert logged[-1] < logged[0]


def test_a_teacher_is_read_in_the_dtype_and_on_the_device_that_are_named(tiny_decoder: str, tmp_path: Path) -> None:
    teacher = writer("causal-lm", tmp_path / "teacher", tiny_decoder)
    student = LlamaForCausalLM.from_pretrained(tiny_decoder).train()
    objective = Distillation(teacher=teacher, teacher_dtype="bfloat16", teacher_device="cpu")
    objective.ready(student, AutoTokenizer.from_pretrained(tiny_decoder))
    assert objective.teacher_of(student).dtype == torch.bfloat16
    ids = torch.randint(6, 100, (2, 9))
    whole = Distillation(teacher=teacher)
    a, b = (d.loss(student, {"input_ids": ids, "labels": ids})[0].item() for d in (objective, whole))
    assert a == pytest.approx(b, rel=0.05)
    assert a != b


def test_the_tokenizers_decide_whether_padded_vocabularies_go_together(tiny_decoder: str, tmp_path: Path) -> None:
    padded = writer("causal-lm", tmp_path / "padded", tiny_decoder)  # 176 words for the same tokenizer
    student, tokenizer = LlamaForCausalLM.from_pretrained(tiny_decoder), AutoTokenizer.from_pretrained(tiny_decoder)
    Distillation(teacher=padded).ready(student, tokenizer)
    other = writer("causal-lm", tmp_path / "other", tiny_decoder)
    changed = AutoTokenizer.from_pretrained(other)
    changed.add_tokens(["brand-new"])
    changed.save_pretrained(other)
    with pytest.raises(TunekitError) as caught:
        Distillation(teacher=other).ready(student, tokenizer)
    assert caught.value.codes == ("distillation-vocabulary",)
    assert "tokenizer" in str(caught.value)


# ---------------------------------------------------------------- Liger
@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl", "jsd"])
def test_ligers_fused_loss_is_the_sum_of_the_pieces(kind: Any) -> None:
    pytest.importorskip("liger_kernel", reason="needs liger-kernel")
    torch.manual_seed(0)
    heads = [torch.nn.Linear(8, 30, bias=False) for _ in range(2)]
    s, t = torch.randn(12, 8, requires_grad=True), torch.randn(12, 8)
    targets = torch.randint(0, 30, (12,))
    targets[3:5] = -100
    said, right = (Answers(states=x[None], head=h, outputs=None) for x, h in zip((s, t), heads, strict=True))
    got = _liger.fused_sum(said, right, (s, t, targets), kind, 2.0, 0.3, 0.4, 4, compiled=False)
    a, b = heads[0](s), heads[1](t)
    hard = torch.nn.functional.cross_entropy(a, targets, reduction="sum")
    want = 0.4 * hard + 0.6 * divergence(a, b, kind, 2.0, 0.3).where(targets.ne(-100), 0.0).sum()
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    mine, theirs = (torch.autograd.grad(x, [s, heads[0].weight], retain_graph=True) for x in (got, want))
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(mine, theirs, strict=True))


def test_liger_is_taken_on_a_gpu_only_and_refused_in_words_elsewhere() -> None:
    student, teacher = pair("llama", "causal-lm")
    batch = batch_of("causal-lm")
    if not torch.cuda.is_available():
        with pytest.raises(TunekitError) as caught:
            Distillation(kernel="liger").taught_by(teacher).ready(student)
        assert caught.value.codes[0] in ("package-missing", "distillation-liger")
    a, b = (Distillation(kernel=k).taught_by(teacher).loss(student, batch)[0].item() for k in ("auto", "pieces"))
    assert a == pytest.approx(b, rel=1e-5)


def test_a_head_whose_weight_lies_in_shards_makes_its_logits_whole_inside_the_model() -> None:
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=97
    )
    student, teacher, ids = LlamaForCausalLM(config).train(), LlamaForCausalLM(config), torch.randint(0, 97, (2, 12))
    batch = {"input_ids": ids, "labels": ids}
    objective = Distillation(positions_at_once=5).taught_by(teacher)
    want = objective.loss(student, batch)[0].item()
    calls: list[int] = []
    student.lm_head.weight.ds_id = 7  # what DeepSpeed marks a divided parameter with
    student.lm_head.register_forward_hook(lambda m, args, out: calls.append(args[0].shape[1]))
    assert objective.loss(student, batch)[0].item() == pytest.approx(want, rel=1e-6)
    assert calls == [12]
