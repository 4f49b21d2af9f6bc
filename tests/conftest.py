"""What every test gets: no network, no cache of the user's, one thread, the same examples everywhere, tiny real models.

The models lie on disk, built from configurations, each with a tokenizer that knows a few hundred words.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

# Before anything imports torch or the hub: both read these once.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": tempfile.mkdtemp(prefix="tunekit-tests-"),
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",  # DeepSpeed prints what it guesses otherwise
    "COLUMNS": "120",
    "TUNEKIT_CALIBRATION": "off",  # the user's own measurements stay theirs
    "TUNEKIT_CACHE": "off",  # and so do their tokenised rows
}

import pytest
from hypothesis import settings

atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
settings.register_profile("tests", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("tests")

WORDS = (
    "good bad fine poor great awful number the a is was what who where sun moon red blue of in and to : ? . "
    "alice bob paris rome went saw says answer question up down left right"
).split()


def make_tokenizer(folder: Path, chat: bool = False) -> None:
    """A word-level tokenizer with the special tokens of BERT and of decoders."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "</s>"]
    vocab = {w: i for i, w in enumerate([*special, *WORDS, *map(str, range(100))])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not chat:
        ids = [("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "</s>"}
    if not chat:
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **names).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a BERT of two layers without dropout, body only."""
    from transformers import BertConfig, BertModel, set_seed

    set_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=160,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    make_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def _imports_are_no_garbage() -> None:
    """A Trainer collects garbage after each run; what was imported so far need not be looked through every time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_classifier(tiny_encoder: str) -> str:
    """The tiny encoder, under the name of what it is used for."""
    return tiny_encoder


@pytest.fixture(scope="session")
def tiny_masked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a BERT of two layers without dropout that fills in blanks."""
    from transformers import BertConfig, BertForMaskedLM, set_seed

    set_seed(0)
    folder = tmp_path_factory.mktemp("masked")
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=160,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    make_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a Llama of two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    folder = tmp_path_factory.mktemp("decoder")
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=160, max_position_embeddings=64, pad_token_id=0, eos_token_id=5, bos_token_id=5,
        initializer_range=0.2,  # a frozen random head must be able to say something
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(folder, chat=True)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_seq2seq(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a T5 of two layers a side."""
    from transformers import T5Config, T5ForConditionalGeneration, set_seed

    set_seed(0)
    folder = tmp_path_factory.mktemp("seq2seq")
    config = T5Config(
        d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=160, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=5,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    make_tokenizer(folder, chat=True)
    return str(folder)
