"""What the tests of distillation share: pairs of models that answer with conviction, rows, and teachers on disk."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration, set_seed

import zoo
from tunekit.task import Task

ROWS = [{"text": f"{'good fine great'.split()[i % 3]} number {i % 7}" if i % 2 else f"bad poor number {i % 5}", "label": "yes" if i % 2 else "no"} for i in range(48)]  # fmt: skip
WORDS = "good bad fine poor great awful sun moon red blue alice bob paris rome up down left right".split()
ASKED = [{"prompt": f"{WORDS[i % 18]} number {i}", "completion": f"{WORDS[(i * 5) % 18]} {WORDS[(i * 7 + 1) % 18]} {i % 9}"} for i in range(24)]  # fmt: skip
WRITTEN = [{"source": row["prompt"], "target": row["completion"]} for row in ASKED]


def pair(architecture: str, task: str, teacher: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """A student and a teacher, both answering with some conviction; the teacher's configuration may differ."""
    labels = 2 if task == "question-answering" else 3
    models = [zoo.build(architecture, Task.named(task), seed=s, num_labels=labels) for s in (0, 1)]
    if teacher:
        config = models[1].config
        for name, value in teacher.items():
            setattr(config, name, value)
        torch.manual_seed(1)
        models[1] = type(models[1])(config)
    for model in models:
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() > 1:
                    p.mul_(6.0)
    return models[0], models[1]


def batch_of(task: str) -> dict[str, torch.Tensor]:
    """The zoo's batch; some labels are not supervised."""
    made = zoo.batch(Task.named(task))
    if task in ("causal-lm", "seq2seq", "token-classification"):
        made["labels"] = made["labels"].clone()
        made["labels"][1, :3] = -100
    return made


def writer(task: str, folder: Path, tokenizer_of: str, wider: int = 2) -> str:
    """A folder with a teacher that writes: wider, its vocabulary padded, and the tokenizer of another folder."""
    set_seed(1)
    if task == "causal-lm":
        config: Any = LlamaConfig(
            hidden_size=32 * wider, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
            vocab_size=176, max_position_embeddings=64, pad_token_id=0, eos_token_id=5, bos_token_id=5, initializer_range=0.3,
        )  # fmt: skip
        model: Any = LlamaForCausalLM(config)
    else:
        config = T5Config(
            d_model=32 * wider, d_kv=16, d_ff=64, num_layers=4, num_heads=2, vocab_size=176, dropout_rate=0.0,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=5,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)
    return str(folder)


class VocabularySized(TorchDispatchMode):
    """Most numbers alive at once in tensors whose last dimension is the vocabulary, weights apart."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.alive, self.most = vocabulary, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for t in made if isinstance(made, tuple | list) else (made,):
            if isinstance(t, torch.Tensor) and t.dim() and t.shape[-1] == self.vocabulary and t._base is None:
                self.alive += t.numel()
                self.most = max(self.most, self.alive)
                weakref.finalize(t, self.free, t.numel())
        return made

    def free(self, size: int) -> None:
        self.alive -= size
