"""Prompt learning: everything that is wrong is said at once, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prompted import ROWS, SPLIT, a_plan, encoded, load, prompt

import tunekit
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.methods.full import Full
from tunekit.objectives.prompt_learning import PromptLearning
from tunekit.plan import Plan


def test_everything_wrong_with_templates_and_words_is_said_at_once() -> None:
    with pytest.raises(InvalidError) as caught:
        PromptLearning(
            templates=("{text} it was", "{mask} and {mask}", "{text:>3} {mask}", "{text {mask}"),
            verbalizer={"a": (), "b": ("good",)}, demonstrations=-1,
        )  # fmt: skip
    assert set(caught.value.codes) == {
        "prompt-mask-missing", "prompt-mask-several", "prompt-field-missing", "prompt-template-format", "prompt-verbalizer-empty",
        "prompt-range",
    }  # fmt: skip
    with pytest.raises(InvalidError, match="prompt-verbalizer-empty"):
        prompt(verbalizer={"only": ("one",)})
    with pytest.raises(InvalidError, match="prompt-prior"):
        prompt(prior={"no": (0.1,)})


def test_everything_wrong_with_the_data_is_said_at_once(tiny_masked: str) -> None:
    _, tokenizer = load(tiny_masked, "encoder")
    tokenizer.mask_token = None
    objective = PromptLearning(templates=("{text} {words} {label} {mask}",), verbalizer={"no": ("bad",), "maybe": ("poor",)})  # fmt: skip
    with pytest.raises(InvalidError) as caught:
        encoded(objective, tokenizer, "encoder")
    assert set(caught.value.codes) == {
        "prompt-mask-token",
        "prompt-labels",
        "prompt-field-unknown",
        "prompt-field-label",
    }


def test_words_that_are_unknown_split_or_the_same_are_reported(tiny_masked: str) -> None:
    _, tokenizer = load(tiny_masked, "encoder")
    with pytest.raises(InvalidError) as caught:
        encoded(prompt(verbalizer={"no": ("bad", "xyzzy"), "yes": ("bad",)}), tokenizer, "encoder")
    assert set(caught.value.codes) == {"prompt-word-unknown", "prompt-words-equal"}
    found = encoded(prompt(verbalizer=SPLIT), tokenizer, "encoder").findings
    assert [f.code for f in found] == ["prompt-word-split"]
    assert "'good fine' is 2 tokens" in found[0].seen


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"task": "token-classification"}, "prompt-task"),
        ({"templates": ("{text} {mask} .",)}, "prompt-mask-not-last"),
        ({"masked_lm_weight": 0.1}, "prompt-auxiliary"),
    ],
)
def test_what_a_decoder_cannot_do_is_refused_before_it_is_loaded(changes: Any, code: str, tiny_decoder: str) -> None:
    task = changes.pop("task", "sequence-classification")
    plan = Plan(model=tiny_decoder, task=task, method=Full(), objective=prompt("decoder", **changes))
    with pytest.raises(UnsupportedError, match=code):
        tunekit.trainer(plan, train_dataset=ROWS)


def test_an_encoder_saved_without_its_head_is_refused(tiny_encoder: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="model-head-missing"):
        tunekit.trainer(a_plan(tiny_encoder, prompt(), tmp_path / "run"), train_dataset=ROWS)
