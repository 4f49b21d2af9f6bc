"""A tokenizer is one that knows words: what transformers makes of a lone config.json is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tunekit
from tunekit.data.texts import knows_words
from tunekit.errors import MissingError
from tunekit.pretrained import load_tokenizer

SMALL = {"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 90, "n_embd": 16, "n_layer": 1, "n_head": 2},
    "bert": SMALL,
    "roberta": SMALL,
    "qwen2": {**SMALL, "num_key_value_heads": 2},
    "llama": {**SMALL, "num_key_value_heads": 2},
    "t5": {"vocab_size": 90, "d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2},
    "deberta-v2": SMALL,
}


def lone(family: str, folder: Path) -> str:
    """A folder with nothing but a config.json."""
    from transformers import AutoConfig

    AutoConfig.for_model(family, **FAMILIES[family]).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_a_tokenizer_is_refused_and_estimated_from_characters(family: str, tmp_path: Path) -> None:
    model = lone(family, tmp_path / "model")
    with pytest.raises(MissingError) as caught:
        load_tokenizer(model)
    assert caught.value.codes == ("tokenizer-missing",)

    from tunekit.advisor.observe.dataset import tokenizer_of
    from tunekit.advisor.observe.model import model_facts

    assert tokenizer_of(model_facts(model)) is None


def test_advice_for_a_lone_configuration_knows_how_long_rows_are(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "a word " * 40, "label": i % 2}) + "\n" for i in range(8)))
    advice = tunekit.advise(lone("bert", tmp_path / "model"), str(rows), hardware="24GB", methods=["bitfit"])
    assert "lengths-estimated" in {f.code for f in advice.findings}
    data = advice.workload.data
    assert min(data.lengths) > 60, "280 characters are no single token"


def test_vocabularies_of_every_kind_are_told_from_none(tiny_encoder: str, tiny_decoder: str, tiny_seq2seq: str) -> None:
    from transformers import ByT5Tokenizer, CanineTokenizer

    for folder in (tiny_encoder, tiny_decoder, tiny_seq2seq):
        assert knows_words(load_tokenizer(folder))
    assert knows_words(ByT5Tokenizer()), "bytes need no file"
    assert knows_words(CanineTokenizer()), "nor do characters"
