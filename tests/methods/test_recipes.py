"""Recipes: published values where they were published, sane ones between, the same for the same question."""

from __future__ import annotations

import dataclasses
import json

import pytest

import zoo
from tunekit.contracts import Method
from tunekit.methods.full import Full
from tunekit.methods.lora import Lora
from tunekit.task import Task
from tunekit.workload import DataFacts, Hardware, ModelFacts, Side, Workload

METHODS = zoo.methods()


def question(
    parameters: float, rows: int = 5000, task: str = "sequence-classification", side: Side = "encoder"
) -> Workload:
    model = ModelFacts(
        name="m", config_json="{}", model_type="bert", side=side, num_parameters=int(parameters), num_layers=12, hidden_size=768, vocab_size=30000,
    )  # fmt: skip
    hardware = Hardware(device="cuda", name="x", memory_bytes=10**10)
    return Workload(
        model=model, data=DataFacts(num_examples=rows, num_labels=2), task=Task.named(task), hardware=hardware
    )


@pytest.mark.parametrize(("parameters", "low", "high"), [(125e6, 4e-4, 5e-4), (355e6, 2e-4, 4e-4), (1.5e9, 6e-5, 2e-4)])
def test_lora_learns_at_the_rates_of_its_paper(parameters: float, low: float, high: float) -> None:
    assert low <= Lora().recipe(question(parameters)).learning_rate <= high


@pytest.mark.parametrize("parameters", [1e9, 8e9, 13e9, 70e9])
def test_decoders_are_tuned_at_1e_4_to_2e_4(parameters: float) -> None:
    rate = Lora().recipe(question(parameters, task="causal-lm", side="decoder")).learning_rate
    assert 1e-4 <= rate <= 2e-4
    assert 5e-6 <= Full().recipe(question(parameters, task="causal-lm", side="decoder")).learning_rate <= 1e-5


@pytest.mark.parametrize("parameters", [22e6, 110e6, 340e6])
def test_full_fine_tuning_of_encoders_stays_within_the_usual_rates(parameters: float) -> None:
    assert 1e-5 <= Full().recipe(question(parameters)).learning_rate <= 1e-4


@pytest.mark.parametrize("slug", METHODS)
@pytest.mark.parametrize("task", ["sequence-classification", "causal-lm", "seq2seq"])
def test_fewer_rows_are_seen_more_often(slug: str, task: str) -> None:
    side: Side = {"causal-lm": "decoder", "seq2seq": "seq2seq"}.get(task, "encoder")  # type: ignore[assignment]
    epochs = [
        METHODS[slug].recipe(question(125e6, rows, task, side)).num_train_epochs
        for rows in (100, 1000, 10_000, 100_000, 10**6)
    ]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] >= 5
    assert 1 <= epochs[-1] <= 5


@pytest.mark.parametrize("slug", METHODS)
@pytest.mark.parametrize("rows", [0, 1, 770, 10**7])
def test_every_recipe_is_in_range_and_names_its_sources(slug: str, rows: int) -> None:
    for parameters, task, side in (
        (0, "token-classification", "encoder"),
        (4e8, "causal-lm", "decoder"),
        (4e11, "causal-lm", "decoder"),
        (3e8, "seq2seq", "seq2seq"),
    ):
        recipe = METHODS[slug].recipe(question(parameters, rows, task, side))  # type: ignore[arg-type]
        assert 1e-6 <= recipe.learning_rate <= 1
        assert recipe.num_train_epochs >= 1
        assert 0 <= recipe.warmup < 1
        assert recipe.effective_batch_size >= 1
        assert recipe.sources


def all_have_defaults(cls: type[Method]) -> bool:
    """Whether a method can be proposed without somebody's own values."""
    fields = (f for f in dataclasses.fields(cls) if f.init)
    return not any(f.default is f.default_factory is dataclasses.MISSING for f in fields)


@pytest.mark.parametrize("slug", METHODS)
def test_candidates_are_few_and_of_the_method(slug: str) -> None:
    for rows in (100, 50_000):
        found = type(METHODS[slug]).candidates(question(8e9, rows, "causal-lm", "decoder"))
        assert len(found) <= 3
        assert bool(found) == all_have_defaults(type(METHODS[slug]))
        assert all(isinstance(m, type(METHODS[slug])) and isinstance(m, Method) for m in found)
        assert len({str(m.to_dict()) for m in found}) == len(found)


def test_many_rows_of_text_bring_a_high_rank_with_rslora() -> None:
    found = Lora.candidates(question(8e9, 50_000, "causal-lm", "decoder"))
    assert [(m.r, m.use_rslora) for m in found] == [(16, False), (64, True)]
    assert len(Lora.candidates(question(8e9, 50_000))) == 1


def test_the_rank_follows_the_information_in_the_rows() -> None:
    def ranks(rows: int, task: str, side: Side, tokens: float | None = None) -> list[tuple[int, int, bool]]:
        asked = question(7e9 if side == "decoder" else 110e6, rows, task, side)
        asked = dataclasses.replace(asked, data=dataclasses.replace(asked.data, supervised_tokens=tokens))
        return [(m.r, m.lora_alpha, m.use_rslora) for m in Lora.candidates(asked)]  # type: ignore[attr-defined]

    assert ranks(200, "sequence-classification", "encoder") == [(8, 16, False)]
    assert ranks(400_000, "sequence-classification", "encoder") == [(8, 16, False)], "a bit a row is little"
    assert ranks(1000, "causal-lm", "decoder", 200.0) == [(16, 32, False)]
    assert ranks(15_000, "causal-lm", "decoder", 200.0) == [(32, 64, False)]
    assert ranks(100_000, "causal-lm", "decoder", 200.0) == [(32, 64, False), (128, 128, True)]


@pytest.mark.parametrize(
    ("shared", "ranks"), [(32, [32, 128]), (2, [32, 128]), (1, [32, 64]), (None, [32, 128])], ids=str
)
def test_no_rank_is_above_that_of_the_narrowest_layer(shared: int | None, ranks: list[int]) -> None:
    asked = question(7e9, 100_000, "causal-lm", "decoder")
    config = {"num_attention_heads": 32, "num_key_value_heads": shared, "head_dim": None}
    model = dataclasses.replace(asked.model, hidden_size=2048, config_json=json.dumps(config))
    data = dataclasses.replace(asked.data, supervised_tokens=400.0)
    found = Lora.candidates(dataclasses.replace(asked, model=model, data=data))
    assert [m.r for m in found] == ranks  # type: ignore[attr-defined]
    tiny = dataclasses.replace(model, hidden_size=512)
    if shared == 1:
        assert [m.r for m in Lora.candidates(dataclasses.replace(asked, model=tiny, data=data))] == [16]  # type: ignore[attr-defined]
