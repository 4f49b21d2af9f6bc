"""Prompt tuning and P-tuning on models that write: with every cache, as the words themselves, as PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from soft_prompts import (
    DECODERS,
    REWRITE,
    WORDS,
    WRITE,
    close,
    ids_of,
    loud,
    unlabelled,
    with_noise,
    with_words,
    written,
)
from torch import nn

import zoo
from tunekit.attach import prepare
from tunekit.errors import UnsupportedError
from tunekit.methods.prompt_tuning import PromptTuning
from tunekit.soft_prompt import set_from_tokens
from tunekit.task import Task


@pytest.mark.filterwarnings("ignore:The attention mask")
@pytest.mark.parametrize("positions", ["shifted", "natural"])
@pytest.mark.parametrize("architecture", [*DECODERS, "t5", "bart"])
def test_with_any_cache_it_writes_what_it_writes_without(architecture: str, positions: Any) -> None:
    if architecture == "bart" and positions == "natural":
        pytest.skip("refused: its own code counts its positions")
    model = with_noise(architecture, WRITE if architecture in DECODERS else REWRITE, positions=positions)
    rows = (
        [[7, 8, 9, 10, 11], [0, 0, 12, 13, 14]] if architecture in DECODERS else [[7, 8, 9, 10, 2], [12, 13, 2, 0, 0]]
    )
    expected = written(model, rows, use_cache=False)
    assert written(model, rows) == expected
    assert written(model, rows, cache_implementation="static", disable_compile=True) == expected
    assert [written(model, [[t for t in row if t]])[0] for row in rows] == expected
    assert written(model, rows, num_beams=3) == written(model, rows, num_beams=3, use_cache=False)
    torch.manual_seed(0)
    sampled = written(model, rows, do_sample=True)
    torch.manual_seed(0)
    assert written(model, rows, do_sample=True, use_cache=False) == sampled


@pytest.mark.parametrize("architecture", DECODERS)
def test_it_writes_what_the_words_themselves_would_lead_to(architecture: str) -> None:
    model = with_words(architecture, WRITE, positions="shifted")
    row = [7, 8, 9, 10, 11]
    assert written(model, [row]) == written(loud(architecture, WRITE), [[*WORDS.tolist(), *row]])


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # PEFT of those that `generate` counts
@pytest.mark.parametrize(("architecture", "task"), ids_of([("llama", WRITE), ("t5", REWRITE)]))
def test_it_writes_what_plain_peft_writes(architecture: str, task: Task, tmp_path: Path) -> None:
    from peft import PeftModel

    model = with_noise(architecture, task)
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(zoo.build(architecture, task), str(tmp_path)).eval()
    ids = torch.tensor([[7, 8, 9, 10, 11]])
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert (
        model.generate(input_ids=ids, **how)[:, -6:].tolist() == plain.generate(input_ids=ids, **how)[:, -6:].tolist()
    )


def test_a_cache_that_lacks_the_prompt_is_refused() -> None:
    model = with_noise("llama", WRITE)
    ids = torch.tensor([[7, 8, 9]])
    cache = zoo.build("llama", WRITE)(input_ids=ids).past_key_values
    with pytest.raises(UnsupportedError, match="soft-prompt-cache"):
        model(input_ids=ids[:, :1], attention_mask=torch.ones(1, 4), past_key_values=cache)
    own = model(input_ids=ids).past_key_values
    both = model(input_ids=torch.tensor([[7, 8, 9, 5]])).logits[:, -1]
    assert close(model(input_ids=torch.tensor([[5]]), past_key_values=own).logits[:, -1], both)


@pytest.mark.parametrize(("architecture", "is_pefts"), [("bert", True), ("roberta", False), ("bart", True)])
def test_an_encoder_or_a_decoder_half_that_is_built_to_write_does(
    architecture: str, is_pefts: bool, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def build() -> nn.Module:
        torch.manual_seed(0)
        config = zoo.config(architecture)
        config.is_decoder = True
        return AutoModelForCausalLM.from_config(config).eval()

    model = prepare(build(), PromptTuning(num_virtual_tokens=len(WORDS), positions="shifted"), WRITE).eval()
    set_from_tokens(model, WORDS)
    row = [7, 8, 9, 10, 11]
    expected = written(build(), [[*WORDS.tolist(), *row]])
    assert written(model, [row]) == expected
    assert written(model, [row], use_cache=False) == expected
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").exists() == is_pefts
    if is_pefts:
        plain, inputs = PeftModel.from_pretrained(build(), str(tmp_path)), unlabelled(WRITE)
        assert close(zoo.logits(plain, inputs)[:, len(WORDS) :], zoo.logits(model, inputs))
