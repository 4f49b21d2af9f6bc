"""Facts by hand: what they make of the data, and what contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit.advisor.observe.dataset import observe_data
from tunekit.advisor.observe.given import Given, spread_lengths
from tunekit.advisor.observe.model import model_facts
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.workload import ModelFacts

NOTHING: dict[str, Any] = dict.fromkeys(
    ("num_examples", "num_labels", "mean_tokens", "max_length", "label_names", "teacher", "adapters", "unlabelled")
)


def given(**facts: Any) -> Given:
    return Given.of(**{**NOTHING, **facts})


@pytest.fixture(scope="module")
def encoder() -> ModelFacts:
    from transformers import BertConfig

    return model_facts(
        BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99)
    )


@pytest.fixture(scope="module")
def decoder() -> ModelFacts:
    from transformers import GPT2Config

    return model_facts(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=99))


def test_facts_by_hand_become_data_facts(encoder: ModelFacts) -> None:
    facts = given(
        num_examples=500,
        label_names=["a", "b", "c"],
        mean_tokens=20,
        max_length=40,
        teacher="big",
        adapters=["x"],
        unlabelled=9,
    )
    seen = observe_data(encoder, None, "sequence-classification", None, facts)
    data = seen.data
    assert (data.num_examples, data.num_labels, data.label_names) == (500, 3, ("a", "b", "c"))
    assert (data.teacher, data.adapters, data.num_unlabelled) == ("big", ("x",), 9)
    assert data.problem_type == "single_label_classification"
    assert data.max_tokens <= 40
    assert 18 < data.mean_tokens < 21
    assert seen.findings == ()


def test_one_label_means_regression(encoder: ModelFacts) -> None:
    data = observe_data(
        encoder, None, "sequence-classification", None, given(num_examples=9, num_labels=1, mean_tokens=5)
    ).data
    assert data.problem_type == "regression"


def test_what_was_assumed_is_said(decoder: ModelFacts) -> None:
    seen = observe_data(decoder, None, "auto", None, given(num_examples=100))
    assert seen.task.name == "causal-lm"
    assert [f.code for f in seen.findings] == ["lengths-assumed"]


def test_labels_make_a_decoder_a_classifier(decoder: ModelFacts) -> None:
    seen = observe_data(decoder, None, "auto", None, given(num_examples=100, num_labels=5, mean_tokens=10))
    assert seen.task.name == "sequence-classification"


def test_an_encoder_without_data_has_to_be_told_its_task(encoder: ModelFacts) -> None:
    with pytest.raises(InvalidError) as e:
        observe_data(encoder, None, "auto", None, given(num_examples=100))
    assert e.value.codes == ("task-ambiguous",)
    assert "token-classification" in str(e.value)


def test_a_task_that_the_architecture_lacks_is_refused(encoder: ModelFacts, decoder: ModelFacts) -> None:
    for model, task in ((encoder, "causal-lm"), (decoder, "multiple-choice"), (decoder, "seq2seq")):
        with pytest.raises(UnsupportedError) as e:
            observe_data(model, None, task, None, given(num_examples=100))
        assert e.value.codes == ("task-architecture",)


def test_every_contradiction_is_named_at_once(encoder: ModelFacts) -> None:
    facts = given(num_examples=5, num_labels=3, label_names=["a", "a"], max_length=1000)
    with pytest.raises(InvalidError) as e:
        observe_data(encoder, None, "question-answering", {"text": "x"}, facts)
    assert set(e.value.codes) == {
        "columns-without-dataset", "given-labels-count", "given-labels-twice", "given-labels-task", "max-length-context",
    }  # fmt: skip


def test_classes_teachers_and_adapters_that_say_nothing_are_refused(encoder: ModelFacts) -> None:
    facts = given(num_examples=5, label_names=["a"], teacher=encoder.name, adapters=["x", "x"])
    with pytest.raises(InvalidError) as e:
        observe_data(encoder, None, "sequence-classification", None, facts)
    assert set(e.value.codes) == {"given-labels-one", "given-teacher-itself", "given-adapters-twice"}


def test_every_missing_fact_is_named_at_once(encoder: ModelFacts) -> None:
    with pytest.raises(InvalidError) as e:
        observe_data(encoder, None, "sequence-classification", None, given())
    assert e.value.codes == ("data-none", "given-labels-needed")


@pytest.mark.parametrize(
    ("facts", "codes"),
    [
        ({"num_examples": -1}, ("given-num-examples",)),
        ({"num_examples": 1.5}, ("given-num-examples",)),
        ({"num_examples": True}, ("given-num-examples",)),
        ({"num_labels": 0}, ("given-num-labels",)),
        ({"mean_tokens": 0}, ("given-mean-tokens",)),
        ({"mean_tokens": float("nan")}, ("given-mean-tokens",)),
        ({"mean_tokens": "12"}, ("given-mean-tokens",)),
        ({"max_length": 0}, ("given-max-length",)),
        ({"label_names": "ab"}, ("given-label-names",)),
        ({"adapters": 3}, ("given-adapters",)),
        ({"num_examples": -1, "mean_tokens": -1}, ("given-num-examples", "given-mean-tokens")),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(facts: dict[str, Any], codes: tuple[str, ...]) -> None:
    with pytest.raises(InvalidError) as e:
        given(**facts)
    assert e.value.codes == codes


@pytest.mark.parametrize("mean", [1, 5, 60, 700])
def test_made_up_lengths_have_the_mean_that_was_told_and_ascend(mean: int) -> None:
    lengths = spread_lengths(mean)
    assert list(lengths) == sorted(lengths)
    assert abs(sum(lengths) / len(lengths) - mean) <= max(0.05 * mean, 0.3)
    assert max(spread_lengths(mean, 64)) <= 64
