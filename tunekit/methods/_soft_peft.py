"""Soft prompts in PEFT's own files, where PEFT has the same method and gives the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.delta_format import CONFIG as OURS
from tunekit.delta_format import raise_mismatch, shapes
from tunekit.peft_format import CONFIG, WEIGHTS
from tunekit.structure import task_model
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

_PROMPT = "prompt_embeddings"
_KINDS = {"prompt-tuning": "PROMPT_TUNING", "p-tuning": "P_TUNING"}


def reads(model: nn.Module, task: Task) -> bool:
    """Whether PEFT's prompts give this model the same logits (of the real tokens, counted behind the virtual ones).

    For models that write they do. For the others PEFT's own classes stand in the way (PEFT 0.21): poolers and heads
    read a virtual token, decoders classify at the padding, answer positions and tags are not aligned. A scale that the
    model puts on embedded tokens outside the module that embeds them, PEFT leaves out.
    """
    from torch import nn

    from tunekit.deep_prompt import position_tables
    from tunekit.soft_prompt import embedding_of, place_of, stack_of

    stack = stack_of(model)
    # Such a model does not count padding, which it can only tell by the tokens that PEFT has embedded already.
    by_tokens = any(type(t) is nn.Embedding and t.padding_idx is not None for t in position_tables(stack))
    scaled_outside = type(embedding_of(stack)) is nn.Embedding and getattr(stack, "embed_scale", None) not in (
        None,
        1.0,
    )
    return not task.has_head and place_of(model) == 0 and not by_tokens and not scaled_outside


def belongs_to_peft(folder: Path, model: nn.Module, task: Task) -> bool:
    """Whether a folder was saved by plain PEFT for a model that PEFT answers for differently than we would."""
    foreign = (folder / CONFIG).is_file() and not (folder / OURS).is_file()
    return foreign and not reads(model, task)


def save(model: nn.Module, folder: Path, task: Task, method: Any, vectors: torch.Tensor) -> None:
    """Writes PEFT's two files for plain vectors (num_virtual_tokens, width)."""
    from peft import PromptEncoderConfig, PromptTuningConfig
    from safetensors.torch import save_file

    tokens, width = vectors.shape
    common: dict[str, Any] = {
        "task_type": task.peft_task_type,
        "num_virtual_tokens": tokens,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "inference_mode": True,
        "base_model_name_or_path": getattr(task_model(model), "name_or_path", "") or None,
    }
    if method.slug == "prompt-tuning":
        config: Any = PromptTuningConfig(**common)
    else:
        config = PromptEncoderConfig(**common, encoder_hidden_size=width)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({_PROMPT: vectors.float().contiguous()}, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def load_into(model: nn.Module, folder: Path) -> None:
    """Copies a folder in PEFT's format into a model with plain vectors.

    Raises:
        UnreadableError: `adapter-corrupted`.
        UnsupportedError: `adapter-wrong-base`.
    """
    import torch
    from safetensors.torch import load_file

    from tunekit.soft_prompt import prompt_of

    weight: Any = prompt_of(model)[1].vectors.weight
    have, want = shapes(folder / WEIGHTS), tuple(weight.shape)
    # For two stacks PEFT makes twice the vectors and reads the first half.
    if have.get(_PROMPT) != (2 * want[0], want[1]):
        raise_mismatch(folder, have, {_PROMPT: want})
    with torch.no_grad():
        weight.copy_(load_file(folder / WEIGHTS)[_PROMPT][: want[0]])


def num_virtual_tokens(config: Any, slug: str) -> int | None:
    """The length that a PEFT configuration of this method says; None for any other, and for one with a head."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    return None if kind != _KINDS[slug] or getattr(config, "modules_to_save", None) else int(config.num_virtual_tokens)
