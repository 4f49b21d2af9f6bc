"""The supervised loss is right under accumulation, where the host's own is not for most heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)

from tunekit.mixin import TunekitTrainer

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3}  # fmt: skip
LLAMA = LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40)
T5 = T5Config(
    d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=40, dropout_rate=0.0, decoder_start_token_id=0
)
MAKE = {
    "bert-sequence": (lambda: BertForSequenceClassification(BertConfig(**BERT)), "one"),
    "bert-token": (lambda: BertForTokenClassification(BertConfig(**BERT)), "each"),
    "llama": (lambda: LlamaForCausalLM(LLAMA), "each"),
    "t5": (lambda: T5ForConditionalGeneration(T5), "each"),
}


class Rows(torch.utils.data.Dataset):
    def __init__(self, labels: str) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(i)
        ids = torch.randint(0, 40, (8,), generator=g)
        each = torch.where(torch.arange(8) < 2 + i % 5, -100, ids % 3)
        return {"input_ids": ids, "labels": torch.tensor(i % 3) if self.labels == "one" else each}


def train(cls: type[Trainer], kind: str, folder: Path, batch: int, accumulation: int) -> Trainer:
    make, labels = MAKE[kind]
    set_seed(0)
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=2,
        logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", optim="sgd",
        learning_rate=0.1, max_grad_norm=1e9,
    )  # fmt: skip
    trainer = cls(make(), args, train_dataset=Rows(labels))
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", MAKE)
def test_accumulation_gives_the_loss_and_the_weights_of_one_large_batch(kind: str, tmp_path: Path) -> None:
    whole, parts = (train(TunekitTrainer, kind, tmp_path, *split) for split in ((8, 1), (2, 4)))
    for a, b in zip(whole.state.log_history[:2], parts.state.log_history[:2], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


@pytest.mark.parametrize("kind", MAKE)
def test_without_accumulation_the_loss_is_the_plain_trainers(kind: str, tmp_path: Path) -> None:
    ours, plain = (train(cls, kind, tmp_path, 4, 1) for cls in (TunekitTrainer, Trainer))
    for p, q in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)
