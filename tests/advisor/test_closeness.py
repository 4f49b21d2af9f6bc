"""Closeness: what a model loses on rows before training tells text that it has seen from text that it has not."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import tunekit
from tunekit.errors import InvalidError

SEEN = ["the cat sat on the mat", "the dog sat on the rug", "a cat and a dog ran", "the dog ran on the mat"]
WORDS = sorted({w for line in SEEN for w in line.split()})


def shuffled(n: int) -> list[str]:
    """The same words in no order."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=6)) for _ in range(n)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[MASK]", "</s>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", eos_token="</s>"
    )


def pretrain(model: Any, tokenizer: Any, masked: bool) -> None:
    """Until it knows the lines above by heart."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = [torch.tensor([[*tokenizer(line)["input_ids"], tokenizer.eos_token_id]]) for line in SEEN]
    for step in range(240):
        ids = rows[step % len(rows)]
        given, labels = ids.clone(), ids.clone()
        if masked:
            hidden = torch.rand(ids.shape) < 0.3
            given[hidden] = tokenizer.mask_token_id
            labels[~hidden] = -100
            if not hidden.any():
                continue
        loss = model(input_ids=given, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=32, n_layer=1, n_head=2, vocab_size=len(tokenizer), n_positions=64, bos_token_id=3, eos_token_id=3
    )
    model, folder = GPT2LMHeadModel(config), tmp_path_factory.mktemp("decoder")
    pretrain(model, tokenizer, masked=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=len(tokenizer),
        max_position_embeddings=64,
    )  # fmt: skip
    model, folder = BertForMaskedLM(config), tmp_path_factory.mktemp("encoder")
    pretrain(model, tokenizer, masked=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ask(model: Any, rows: list[dict[str, str]], own_loss: Any = "measure", **more: Any) -> Any:
    return tunekit.advise(model, rows, hardware="24GB", methods=["lora"], own_loss=own_loss, **more)


def test_text_it_has_seen_loses_less_than_the_same_words_in_no_order(decoder: Path) -> None:
    seen = ask(decoder, [{"text": line} for line in SEEN * 3])
    strange = ask(decoder, [{"text": line} for line in shuffled(12)])
    assert seen.workload.data.own_loss < 1.0 < strange.workload.data.own_loss
    assert "own-loss" in {f.code for f in seen.findings}


def test_the_loss_is_that_of_the_model_itself(decoder: Path, tokenizer: Any) -> None:
    from transformers import GPT2LMHeadModel

    rows = [{"prompt": "the cat sat on ", "completion": "the mat"}] * 4
    found = ask(decoder, rows).workload.data.own_loss
    ids = torch.tensor([[*tokenizer("the cat sat on")["input_ids"], *tokenizer("the mat")["input_ids"], 3]])
    labels = ids.clone()
    labels[0, :4] = -100
    expected = GPT2LMHeadModel.from_pretrained(decoder)(input_ids=ids, labels=labels).loss.item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_masked_model_is_asked_for_masked_words(encoder: Path) -> None:
    labelled = [{"text": line, "label": "ab"[i % 2]} for i, line in enumerate(SEEN * 3)]
    strange = [{"text": line, "label": "ab"[i % 2]} for i, line in enumerate(shuffled(12))]
    near, far = (ask(encoder, rows).workload.data.own_loss for rows in (labelled, strange))
    assert near < far
    assert near == ask(encoder, labelled).workload.data.own_loss, "the same question has the same answer"


def test_no_weights_are_read_unless_asked(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
    assert ask(decoder, [{"text": line} for line in SEEN], own_loss=None).workload.data.own_loss is None


def test_a_small_live_model_is_asked_unbidden_and_left_as_it_was(decoder: Path) -> None:
    from transformers import GPT2LMHeadModel

    live = GPT2LMHeadModel.from_pretrained(decoder).train()
    before, state = {k: v.clone() for k, v in live.state_dict().items()}, torch.get_rng_state()
    found = ask(live, [{"text": line} for line in SEEN * 3], own_loss=None).workload.data.own_loss
    assert found == ask(decoder, [{"text": line} for line in SEEN * 3]).workload.data.own_loss
    assert live.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in live.state_dict().items())


def test_a_model_without_a_head_for_words_says_that_it_cannot_tell(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99)
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    advice = ask(tmp_path, [{"text": line, "label": "ab"[i % 2]} for i, line in enumerate(SEEN * 3)])
    assert advice.workload.data.own_loss is None
    [told] = [f for f in advice.findings if f.code == "own-loss-unknown"]
    assert "no head that says words" in told.why


def test_it_can_be_given_by_hand_and_moves_the_ranking(decoder: Path) -> None:
    question = {
        "task": "causal-lm",
        "num_examples": 5000,
        "mean_tokens": 20,
        "hardware": "24GB",
        "methods": ["full", "prefix-tuning"],
    }
    near, far = (tunekit.advise(decoder, own_loss=x, **question) for x in (1.0, 0.8 * math.log(18)))
    codes = [{f.code for e in a.ranked for f in e.findings} for a in (near, far)]
    assert "far-from-seen" not in codes[0]
    assert "far-from-seen" in codes[1]


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, True, "guess"])
def test_what_is_no_loss_is_refused(decoder: Path, value: Any) -> None:
    with pytest.raises(InvalidError, match="given-own-loss"):
        tunekit.advise(decoder, task="causal-lm", num_examples=9, hardware="24GB", own_loss=value)


def test_measuring_needs_rows(decoder: Path) -> None:
    with pytest.raises(InvalidError, match="given-own-loss-rows"):
        tunekit.advise(decoder, task="causal-lm", num_examples=9, hardware="24GB", own_loss="measure")
