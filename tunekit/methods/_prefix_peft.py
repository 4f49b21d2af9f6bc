"""Prefixes in PEFT's own files, where PEFT has the same method and gives the same logits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.attention import Attention
from tunekit.delta_format import CONFIG as OURS
from tunekit.delta_format import raise_mismatch, shapes
from tunekit.peft_format import CONFIG, WEIGHTS
from tunekit.structure import base_model, head_modules, task_model
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

_PROMPT, _HEAD = "prompt_embeddings", "base_model."


def reads(model: nn.Module, task: Task, sites: tuple[Attention, ...]) -> bool:
    """Whether PEFT's prefix tuning gives this model the same logits (with its tokens standing behind the prefix).

    PEFT hands the prefix over as a filled cache. That takes a base that accepts one, one self-attention of the same
    shape in every layer, and no sliding window, which would count the prefix as tokens; and of PEFT's task classes,
    one that passes every input on: the one for question answering drops token types (PEFT 0.21,
    `PeftModelForQuestionAnswering.forward`), and there is none for multiple choice.
    """
    from tunekit.deep_prompt import position_modules

    base = base_model(model)
    takes_cache = "past_key_values" in inspect.signature(base.forward).parameters
    layers = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    alike = {(at.role, at.num_heads, at.key_dim, at.value_dim, at.window) for at in sites}
    return (
        task.peft_task_type is not None
        and takes_cache
        and not getattr(base.config, "is_encoder_decoder", False)
        and len(sites) == layers
        and len(alike) == 1
        and sites[0].key_dim == sites[0].value_dim
        and sites[0].window is None
        and any(position_modules(model))
        and not (task.name == "question-answering" and _has_token_types(base))
        and not _has_another_cache(base)
    )


def belongs_to_peft(folder: Path, model: nn.Module, task: Task) -> bool:
    """Whether a folder was saved by plain PEFT for a model that PEFT answers for differently than we would."""
    from tunekit.attention import attentions

    foreign = (folder / CONFIG).is_file() and not (folder / OURS).is_file()
    return foreign and not reads(model, task, attentions(model))


def _has_token_types(base: nn.Module) -> bool:
    tables = (m for n, m in base.named_modules() if n.endswith("token_type_embeddings"))
    return any(getattr(t, "num_embeddings", 0) > 1 for t in tables)


def _has_another_cache(base: nn.Module) -> bool:
    """Whether PEFT stores the prefixes of this architecture in a layout of its own."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING as OTHERS

    return base.config.model_type in OTHERS


def save(
    model: nn.Module,
    folder: Path,
    task: Task,
    prefixes: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    head: Mapping[str, torch.Tensor],
) -> None:
    """Writes PEFT's two files: (token, layer, key or value, head, width) in one row a token, and the head's weights."""
    import torch
    from peft import PrefixTuningConfig
    from safetensors.torch import save_file

    pairs = [torch.stack([k.detach().float().cpu(), v.detach().float().cpu()]) for k, v in prefixes.values()]
    stacked = torch.stack(pairs)  # (layers, 2, heads, tokens, width)
    layers, _, heads, tokens, width = stacked.shape
    config = PrefixTuningConfig(
        task_type=task.peft_task_type,
        num_virtual_tokens=tokens,
        token_dim=heads * width,
        num_transformer_submodules=1,
        num_attention_heads=heads,
        num_layers=layers,
        encoder_hidden_size=heads * width,
        inference_mode=True,
        modules_to_save=list(head_modules(model, task)) or None,
        base_model_name_or_path=getattr(task_model(model), "name_or_path", "") or None,
    )
    rows = stacked.permute(3, 0, 1, 2, 4).reshape(tokens, -1).contiguous()
    tensors = {_PROMPT: rows, **{_HEAD + n: t.detach().cpu().contiguous() for n, t in head.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def load_into(model: nn.Module, folder: Path, whole_head: bool = True) -> None:
    """Copies a folder in PEFT's format into a model with plain prefixes and their head.

    Args:
        model: With the prefixes on it.
        folder: PEFT's.
        whole_head: Whether every part of the head must be in the folder; what plain PEFT saved may lack a pooler.

    Raises:
        UnreadableError: `adapter-corrupted`.
        UnsupportedError: `adapter-wrong-base`.
    """
    import torch
    from safetensors.torch import load_file

    from tunekit.deep_prompt import learnt_by_prefixes, prefixes_of

    prefixes: list[Any] = list(prefixes_of(model).values())
    own = dict(model.named_parameters())
    have = shapes(folder / WEIGHTS)
    head = {n for n, p in own.items() if p.requires_grad} - learnt_by_prefixes(model)
    head = {n for n in head if whole_head or _HEAD + n in have}
    heads, tokens, width = prefixes[0].key.shape
    want = {_PROMPT: (tokens, len(prefixes) * 2 * heads * width), **{_HEAD + n: tuple(own[n].shape) for n in head}}
    raise_mismatch(folder, have, want)
    values = load_file(folder / WEIGHTS)
    stacked = values[_PROMPT].view(tokens, len(prefixes), 2, heads, width).permute(1, 2, 3, 0, 4)
    with torch.no_grad():
        for prefix, (key, value) in zip(prefixes, stacked, strict=True):
            prefix.key.copy_(key)
            prefix.value.copy_(value)
        for name in head:
            own[name].copy_(values[_HEAD + name])


def settings(config: Any) -> dict[str, Any] | None:
    """What a PEFT configuration of prefix tuning says in our terms; None for any other, and for two stacks."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "PREFIX_TUNING" or (config.num_transformer_submodules or 1) != 1:
        return None
    return {"num_virtual_tokens": config.num_virtual_tokens, "prefix_projection": False, "positions": "shifted"}
