"""Tiny models of many architectures with random weights, a batch for every task, and what the tests ask of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from tunekit.contracts import Method
from tunekit.discovery import everything
from tunekit.task import Task

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
}
_ENCODER = {
    **_SIZES,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
}
_DECODER = {
    **_SIZES,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def methods() -> dict[str, Method]:
    """Every method that is found, by slug; further examples of one as `slug-2` and so on."""
    found = ((slug, i, m) for slug, cls in everything("method").items() for i, m in enumerate(cls.examples(), 1))
    return {slug if i == 1 else f"{slug}-{i}": m for slug, i, m in found}


ENCODERS = ("bert", "roberta", "electra", "albert", "deberta-v2", "distilbert", "modernbert")


def config(architecture: str, task: str | None = None) -> PretrainedConfig:
    """The configuration of a tiny model, without dropout; an encoder that is to write looks back only."""
    made = _config(architecture)
    if task == "causal-lm" and architecture in (*ENCODERS, "bart"):
        made.is_decoder = True
    return made


def _config(architecture: str) -> PretrainedConfig:
    import transformers as t

    known: dict[str, Any] = {
        "bert": lambda: t.BertConfig(**_ENCODER),
        "roberta": lambda: t.RobertaConfig(**_ENCODER, bos_token_id=1, eos_token_id=2),
        "electra": lambda: t.ElectraConfig(**_ENCODER, embedding_size=16, summary_last_dropout=0.0),
        "albert": lambda: t.AlbertConfig(**_ENCODER, embedding_size=16, classifier_dropout_prob=0.0),
        "deberta-v2": lambda: t.DebertaV2Config(
            **_ENCODER, relative_attention=True, position_buckets=16, pos_att_type=["p2c", "c2p"], pooler_hidden_size=32
        ),
        "distilbert": lambda: t.DistilBertConfig(
            dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=100, dropout=0.0, attention_dropout=0.0,
            seq_classif_dropout=0.0, qa_dropout=0.0, pad_token_id=0,
        ),
        "modernbert": lambda: t.ModernBertConfig(
            **_SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
        ),
        "gpt2": lambda: t.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, classifier_dropout=0.0,
        ),
        "llama": lambda: t.LlamaConfig(**_DECODER),
        "qwen3": lambda: t.Qwen3Config(**_DECODER, head_dim=8),
        "gemma3": lambda: t.Gemma3TextConfig(**_DECODER, head_dim=8),
        "phi3": lambda: t.Phi3Config(**_DECODER),
        "mixtral": lambda: t.MixtralConfig(**_DECODER, num_local_experts=4, num_experts_per_tok=2),
        "t5": lambda: t.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=100, dropout_rate=0.0, pad_token_id=0,
            eos_token_id=2, decoder_start_token_id=0,
        ),
        "bart": lambda: t.BartConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=100, max_position_embeddings=64, dropout=0.0, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
        ),
    }  # fmt: skip
    return known[architecture]()


ARCHITECTURES = (
    "bert", "roberta", "electra", "albert", "deberta-v2", "distilbert", "modernbert", "gpt2", "llama", "qwen3", "gemma3", "phi3",
    "mixtral", "t5", "bart",
)  # fmt: skip


def fits(architecture: str, task: Task) -> bool:
    """Whether transformers has an auto class for the pair, and the architecture was pretrained for it."""
    return has_auto_class(architecture, task) and not (task.name == "causal-lm" and architecture in (*ENCODERS, "bart"))


def has_auto_class(architecture: str, task: Task) -> bool:
    """Whether transformers builds such a model for the task."""
    import transformers

    return type(config(architecture)) in getattr(transformers, task.auto_class)._model_mapping.keys()  # noqa: SIM118


def build(architecture: str, task: Task, device: str = "cpu", num_labels: int = 2, seed: int = 0) -> nn.Module:
    """A tiny model of the task's auto class; the same weights for the same seed."""
    import transformers

    torch.manual_seed(seed)
    made = config(architecture, task.name)
    made.num_labels = num_labels
    made.problem_type = "single_label_classification" if task.name == "sequence-classification" else None
    with torch.device(device):
        model = getattr(transformers, task.auto_class).from_config(made)
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # some heads drop out by a constant of their own
            module.p = 0.0
    return model


def batch(task: Task, rows: int = 4, length: int = 8) -> dict[str, torch.Tensor]:
    """Random rows with labels; the last token of a row is its end, the first row is padded at the right."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 100, (rows, length), generator=draw)
    ids[:, -1] = 2
    mask = torch.ones_like(ids)
    ids[0, -3:], mask[0, -3:] = torch.tensor([2, 0, 0]), torch.tensor([1, 0, 0])
    if task.name == "multiple-choice":
        two = {"input_ids": ids.view(rows // 2, 2, length), "attention_mask": mask.view(rows // 2, 2, length)}
        return {**two, "labels": torch.arange(rows // 2) % 2}
    inputs = {"input_ids": ids, "attention_mask": mask}
    if task.name == "sequence-classification":
        return {**inputs, "labels": torch.arange(rows) % 2}
    if task.name == "question-answering":
        return {**inputs, "start_positions": torch.arange(rows) % 3, "end_positions": torch.arange(rows) % 3 + 1}
    labels = torch.randint(0, 2, (rows, length), generator=draw) if task.has_head else ids.clone()
    return {**inputs, "labels": labels.masked_fill(mask == 0, -100)}


def logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model answers in evaluation mode."""
    model.eval()
    with torch.no_grad():
        out = model(**inputs)
    return out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits])


def train(
    model: nn.Module, groups: list[dict[str, Any]], inputs: dict[str, torch.Tensor], steps: int = 3
) -> dict[str, set[str]]:
    """A few steps of AdamW; returns the names that had no gradient in the first, and those that ever had a non-zero one."""
    optimizer = torch.optim.AdamW(groups)
    model.train()
    without: set[str] = set()
    moved: set[str] = set()
    for step in range(steps):
        model(**inputs)["loss"].backward()
        wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if step == 0:
            without = {name for name, p in wanted.items() if p.grad is None}
        moved |= {name for name, p in wanted.items() if p.grad is not None and p.grad.any()}
        optimizer.step()
        optimizer.zero_grad()
    return {"without_gradient": without, "moved": moved}
