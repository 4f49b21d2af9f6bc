"""Models with soft prompts for the tests: prompts of real words, prompts like no word, and PEFT's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from tunekit.attach import prepare
from tunekit.methods.prompt_tuning import PromptTuning
from tunekit.soft_prompt import prompt_of, set_from_tokens
from tunekit.task import TASKS, Task

CLASSIFY, TAG, ANSWER, CHOOSE, WRITE, REWRITE = (
    Task.named(n)
    for n in (
        "sequence-classification", "token-classification", "question-answering", "multiple-choice", "causal-lm", "seq2seq",
    )
)  # fmt: skip
DECODERS = ("gpt2", "llama", "qwen3", "gemma3", "phi3", "mixtral")
LEARNT_POSITIONS = ("bert", "roberta", "electra", "albert", "deberta-v2", "distilbert", "gpt2")
WORDS = torch.tensor([21, 22, 23, 24, 25])
PAIRS = [(a, t) for a in zoo.ARCHITECTURES for t in TASKS if zoo.fits(a, t)]
WRITERS = [(a, t) for a, t in PAIRS if not t.has_head]


def ids_of(pairs: list[tuple[str, Task]]) -> list[Any]:
    return [pytest.param(a, t, id=f"{a}-{t}") for a, t in pairs]


def loud(architecture: str, task: Task) -> nn.Module:
    """A tiny model with weights so large that every token matters for every answer."""
    model = zoo.build(architecture, task)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0 if p.ndim > 1 else 1.0)
    return model.eval()


def with_words(architecture: str, task: Task, **settings: Any) -> nn.Module:
    """A loud model whose prompt is what `WORDS` are embedded as."""
    model = prepare(loud(architecture, task), PromptTuning(num_virtual_tokens=len(WORDS), **settings), task).eval()
    set_from_tokens(model, WORDS)
    return model


def with_noise(architecture: str, task: Task, **settings: Any) -> nn.Module:
    """A model with a prompt like no word, the same for the same arguments."""
    model = prepare(zoo.build(architecture, task), PromptTuning(num_virtual_tokens=5, **settings), task).eval()
    torch.manual_seed(1)
    nn.init.normal_(prompt_of(model)[1].vectors.weight)
    return model


def written_in(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs with `WORDS` written where the prompt of `model` stands, for the model without it."""
    at, first = prompt_of(model)[1].at, inputs["input_ids"]

    def put(name: str, row: torch.Tensor) -> torch.Tensor:
        own = WORDS if name == "input_ids" else torch.ones_like(WORDS)
        return torch.cat([row[..., :at], own.expand(*first.shape[:-1], -1), row[..., at:]], dim=-1)

    return {k: put(k, v) if k in ("input_ids", "attention_mask") else v for k, v in inputs.items()}


def without_words(model: nn.Module, task: Task, logits: torch.Tensor) -> torch.Tensor:
    """Logits with the places of `WORDS` taken out, where there is one a token."""
    prompt = prompt_of(model)[1]
    if not prompt.cuts or task in (CLASSIFY, CHOOSE):
        return logits
    dim = -1 if task is ANSWER else 1
    keep = [i for i in range(logits.shape[dim]) if not prompt.at <= i < prompt.at + len(WORDS)]
    return logits.index_select(dim, torch.tensor(keep))


def unlabelled(task: Task) -> dict[str, torch.Tensor]:
    inputs = {k: v for k, v in zoo.batch(task).items() if k in ("input_ids", "attention_mask")}
    return {**inputs, "decoder_input_ids": inputs["input_ids"][:, :4]} if task is REWRITE else inputs


def close(a: torch.Tensor, b: torch.Tensor, by: float = 1e-5) -> bool:
    return a.shape == b.shape and float((a - b).detach().abs().max()) <= by * max(1.0, float(b.detach().abs().max()))


def written(model: nn.Module, ids: list[list[int]], **how: Any) -> list[list[int]]:
    tokens = torch.tensor(ids)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **how}
    out = model.generate(input_ids=tokens, attention_mask=(tokens != 0).long(), **settings)
    return out[:, tokens.shape[1] :].tolist() if not model.config.is_encoder_decoder else out[:, 1:].tolist()


def plain_peft(architecture: str, task: Task, folder: Path, kind: str) -> nn.Module:
    """A prompt of PEFT's own making, saved by PEFT, on the model that `zoo.build` gives."""
    import peft

    torch.manual_seed(2)
    settings: dict[str, Any] = {"task_type": task.peft_task_type, "num_virtual_tokens": 5}
    config = peft.PromptTuningConfig(**settings)
    if kind == "p-tuning":
        config = peft.PromptEncoderConfig(**settings, encoder_hidden_size=8)
    model = peft.get_peft_model(zoo.build(architecture, task), config).eval()
    model.save_pretrained(str(folder))
    return model
