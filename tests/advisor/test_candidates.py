"""What is compared: names that stand for settings, objectives that the facts bear, and nothing that the assembly refuses."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BertConfig, GPT2Config, LlamaConfig

from tunekit.advisor.ask import advise
from tunekit.advisor.candidates import names
from tunekit.advisor.variants import VARIANTS
from tunekit.advisor.words import nameable, spoken
from tunekit.discovery import slugs
from tunekit.errors import InvalidError
from tunekit.sharding import sharding_faults

BERT = BertConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=99, max_position_embeddings=64
)  # fmt: skip
LLAMA = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=99
)  # fmt: skip
FEW: dict[str, Any] = {"task": "sequence-classification", "num_examples": 40, "mean_tokens": 12, "hardware": "24GB"}
prompts = pytest.mark.skipif("prompt-learning" not in slugs("objective"), reason="needs the objective prompt-learning")


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_well_known_name_is_the_method_so_set(name: str) -> None:
    variant = VARIANTS[name]
    advice = advise(LLAMA, task="causal-lm", num_examples=100, mean_tokens=12, hardware="24GB", methods=[name])
    (entry,) = (*advice.ranked, *advice.rejected)
    assert entry.plan.method == variant.make()
    assert entry.plan.quantization == variant.quantization


def test_names_that_mean_the_same_are_compared_once() -> None:
    advice = advise(
        LLAMA,
        task="causal-lm",
        num_examples=100,
        mean_tokens=12,
        hardware="24GB",
        methods=["pfeiffer", "bottleneck-adapter"],
    )
    assert len(advice.ranked) == 1


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(InvalidError, match="Did you mean `pissa`"):
        advise(BERT, methods=["pisssa"], num_labels=2, **FEW)
    assert {"lora", "qlora", "distillation"} <= set(names())


def test_a_teacher_at_hand_is_taught_by(tmp_path: Any) -> None:
    GPT2Config(n_embd=64, n_layer=4, n_head=2, vocab_size=99).save_pretrained(tmp_path)
    student = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=99)
    advice = advise(student, task="causal-lm", num_examples=5000, mean_tokens=12, hardware="24GB", goal="quality", teacher=tmp_path, methods=["full", "distillation"])  # fmt: skip
    assert advice.best is not None
    assert advice.best.slug == "distillation"


def test_without_a_teacher_nobody_is_taught() -> None:
    with pytest.raises(InvalidError, match="no teacher"):
        advise(BERT, methods=["distillation"], num_labels=2, **FEW)
    assert {e.slug for e in advise(BERT, num_labels=2, **FEW).ranked} <= set(slugs("method"))


@prompts
def test_few_rows_of_named_classes_are_learnt_through_words() -> None:
    advice = advise(BERT, label_names=["sports", "politics"], goal="quality", **FEW)
    assert advice.best is not None
    assert advice.best.slug == "prompt-learning"
    many = advise(BERT, label_names=["sports", "politics"], goal="quality", **{**FEW, "num_examples": 50_000})
    assert "prompt-learning" not in {e.slug for e in many.ranked}


@prompts
def test_numbers_are_no_words_to_learn_through() -> None:
    with pytest.raises(InvalidError, match="no names"):
        advise(BERT, methods=["prompt-learning"], num_labels=2, **FEW)


@pytest.mark.parametrize(
    ("label_names", "expected"),
    [
        (("positive", "negative"), True),
        (("card_arrival", "lost_card"), True),
        (("entailment", "neutral", "contradiction"), True),
        (("LABEL_0", "LABEL_1"), False),
        (("0", "1"), False),
        (("ABBR", "ENTY", "NUM"), False),
        (("same", "same"), False),
        ((), False),
        (tuple(f"word{'x' * i}" for i in range(40)), False),
    ],
)
def test_classes_have_names_when_one_can_say_them(label_names: tuple[str, ...], expected: bool) -> None:
    assert nameable(label_names) is expected


def test_a_name_is_said_as_words() -> None:
    assert [spoken(n) for n in ("Sci/Tech", "card_arrival", "a_very_long_name_of_many_words", "x1")] == [
        "sci tech",
        "card arrival",
        "",
        "",
    ]


@pytest.mark.parametrize("gib", [0.25, 1, 24])
def test_nothing_is_proposed_that_the_assembly_refuses(gib: float) -> None:
    advice = advise(LLAMA, task="causal-lm", num_examples=1000, mean_tokens=20, hardware=f"8x{gib}GB", goal="memory")
    for entry in advice.ranked:
        assert sharding_faults(entry.plan) == []
        assert entry.plan.method.supports(advice.workload.model, advice.workload.task, entry.plan.objective, entry.plan.quantization, entry.plan.sharding) is None  # fmt: skip
