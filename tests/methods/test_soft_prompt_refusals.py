"""What prompt tuning and P-tuning refuse, each with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from soft_prompts import CLASSIFY, REWRITE, WRITE, with_noise
from torch import nn

import zoo
from tunekit.attach import load, prepare
from tunekit.errors import InvalidError, UnsupportedError
from tunekit.methods.p_tuning import PTuning
from tunekit.methods.prompt_tuning import PromptTuning
from tunekit.task import Task


@pytest.mark.parametrize(
    ("kind", "values", "codes"),
    [
        (PromptTuning, {"num_virtual_tokens": 0}, ["prompt-tuning-tokens"]),
        (PromptTuning, {"init": "text"}, ["prompt-tuning-init"]),
        (PromptTuning, {"init_text": "good", "num_virtual_tokens": -1}, ["prompt-tuning-tokens", "prompt-tuning-init"]),
        (PromptTuning, {"init": "zeros"}, ["prompt-tuning-type"]),
        (PTuning, {"num_virtual_tokens": 0}, ["p-tuning-tokens"]),
        (PTuning, {"encoder": "gru"}, ["p-tuning-type"]),
        (PTuning, {"encoder_hidden_size": 0, "encoder_dropout": 1.0}, ["p-tuning-encoder", "p-tuning-encoder"]),
        (PTuning, {"encoder": None, "encoder_hidden_size": 8}, ["p-tuning-encoder"]),
        (PTuning, {"positions": "absolute"}, ["p-tuning-type"]),
    ],
)
def test_a_wrong_setting_is_told_with_the_way_out(kind: type, values: dict[str, Any], codes: list[str]) -> None:
    with pytest.raises(InvalidError) as e:
        kind(**values)
    assert list(e.value.codes) == codes
    assert all(f.fix for f in e.value.findings)


@pytest.mark.parametrize(
    ("architecture", "task", "method", "code"),
    [
        ("bert", CLASSIFY, PromptTuning(num_virtual_tokens=64), "prompt-too-long"),
        ("llama", WRITE, PTuning(num_virtual_tokens=64), "prompt-too-long"),
        ("bart", REWRITE, PromptTuning(positions="natural"), "prompt-positions"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(architecture: str, task: Task, method: Any, code: str) -> None:
    base = zoo.build(architecture, task)
    before = list(base.state_dict())
    with pytest.raises(UnsupportedError, match=code):
        prepare(base, method, task)
    assert list(base.state_dict()) == before


def test_a_prompt_longer_than_the_context_is_refused_before_loading() -> None:
    from tunekit.advisor.observe.model import model_facts

    facts = model_facts(zoo.config("bert"))
    assert PromptTuning(num_virtual_tokens=64).supports(facts, CLASSIFY).code == "prompt-too-long"
    assert PromptTuning(num_virtual_tokens=63).supports(facts, CLASSIFY) is None


def test_a_model_without_a_base_below_its_head_is_refused() -> None:
    class Own(nn.Module):
        base_model_prefix = "nothing"

        def __init__(self) -> None:
            super().__init__()
            self.inner = zoo.build("llama", WRITE)
            self.config = self.inner.config

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    with pytest.raises(UnsupportedError, match="prompt-no-base"):
        PromptTuning().apply(Own(), WRITE)


def test_rows_packed_into_one_are_refused() -> None:
    model, ids = with_noise("llama", WRITE), torch.tensor([[7, 8, 9, 10, 11]])
    with pytest.raises(UnsupportedError, match="soft-prompt-packed"):
        model(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 0, 1]]))
    model(input_ids=ids, position_ids=torch.arange(5)[None])


@pytest.mark.parametrize("method", [PromptTuning(), PTuning()], ids=["prompt", "p"])
def test_a_plan_that_packs_rows_is_refused(method: Any) -> None:
    from tunekit.plan import Plan

    with pytest.raises(InvalidError, match="plan-packing-method"):
        Plan(model="./m", task="causal-lm", method=method, learning_rate=1e-3, packing=True)
    assert not Plan(model="./m", task="causal-lm", method=method, learning_rate=1e-3).packing


def test_a_mask_of_four_dimensions_is_refused() -> None:
    model, ids = with_noise("llama", WRITE), torch.tensor([[7, 8, 9]])
    with pytest.raises(UnsupportedError, match="soft-prompt-mask"):
        model(input_ids=ids, attention_mask=torch.ones(1, 1, 3, 3))


def test_an_embedding_that_passed_the_prompt_by_says_so() -> None:
    model = with_noise("bert", CLASSIFY)
    model.bert.embeddings.word_embeddings = nn.Embedding(100, 32)
    with pytest.raises(UnsupportedError, match="soft-prompt-unread"):
        zoo.logits(model, zoo.batch(CLASSIFY))


def test_a_prompt_of_another_model_is_refused(tmp_path: Path) -> None:
    with_noise("llama", WRITE).save_pretrained(tmp_path)
    other = zoo.config("llama")
    other.hidden_size = 64
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM(other)
    before = list(base.state_dict())
    with pytest.raises(UnsupportedError, match="adapter-wrong-base"):
        load(base, tmp_path)
    assert list(base.state_dict()) == before
