"""What prefix tuning and P-tuning v2 share: where prefixes go, what is refused, and the folders they are saved in."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunekit import delta_format, peft_format
from tunekit.attention import Attention, attentions
from tunekit.errors import UnsupportedError, raise_all
from tunekit.files import write_json
from tunekit.finding import Finding, error
from tunekit.methods import _prefix_peft as as_peft
from tunekit.prefix_attention import CHILD, kernel_fault
from tunekit.structure import head_parameters, task_model
from tunekit.task import Task
from tunekit.workload import ModelFacts

if TYPE_CHECKING:
    import torch
    from torch import nn

Positions = Literal["shifted", "natural"]
Sides = Literal["both", "encoder", "decoder"]
_SIDES: Mapping[Sides, tuple[str, ...]] = {
    "both": ("self", "encoder", "decoder", "cross"),
    "encoder": ("self", "encoder"),
    "decoder": ("decoder", "cross"),
}
_CHECKPOINT = re.compile(r"checkpoint-\d+")
"""What transformers' Trainer calls its checkpoints; there the reparameterisation is kept, so that training can go on."""
NEAREST = "use `method: {kind: lora}`, which works on the weights and not on the attention"


# ---------------------------------------------------------------------------------------------- before a model
def value_faults(method: Any) -> list[Finding]:
    """What is wrong with the settings that both methods have."""
    kind, slug, found = type(method).__name__, method.slug, []
    if method.num_virtual_tokens < 1:
        seen = f"`num_virtual_tokens` of `{kind}` is {method.num_virtual_tokens}"
        found.append(error(f"{slug}-tokens", seen, "a prompt has at least one token", "set 10 to 100"))
    if method.encoder_hidden_size is not None and method.encoder_hidden_size < 1:
        seen = f"`encoder_hidden_size` of `{kind}` is {method.encoder_hidden_size}"
        found.append(error(f"{slug}-hidden", seen, "a layer has at least one unit", "leave it out, or set 512"))
    if method.encoder_hidden_size is not None and not method.prefix_projection:
        seen = f"`encoder_hidden_size` of `{kind}` without `prefix_projection`"
        fix = "set `prefix_projection: true`, or leave it out"
        found.append(error(f"{slug}-hidden", seen, "it is the width of the projection's hidden layer", fix))
    return found


def refusal(method: Any, model: ModelFacts) -> Finding | None:
    """Why deep prompts cannot work on such a model, or None."""
    if not model.attention_interface:
        return error(
            "own-attention", f"method {method.slug} on {model.name}",
            f"a `{model.model_type}` model has attention code of its own, which no prefix can be put into",
            NEAREST,
        )  # fmt: skip
    length = model.context_length
    if method.positions != "natural" and length is not None and method.num_virtual_tokens >= length:
        return error(
            "prompt-too-long", f"`num_virtual_tokens: {method.num_virtual_tokens}` on {model.name}",
            f"its {length} positions leave no room for a real token", f"set fewer than {length}, or `positions: natural`",
        )  # fmt: skip
    return None


# ---------------------------------------------------------------------------------------------- on a model
def apply(
    method: Any, model: nn.Module, task: Task, sides: Sides = "both", tokens: torch.Tensor | None = None
) -> nn.Module:
    """Puts prefixes on the model's attention modules and lets them and the task's head learn, and nothing else.

    Args:
        method: The settings.
        model: A model of the task; changed in place.
        task: Whose head learns too.
        sides: Which stacks of an encoder-decoder.
        tokens: Ids of real words to start from; None: random values.

    Raises:
        UnsupportedError: `own-attention`, `attention-kernel`, `prefix-side`, `prefix-positions`, `prompt-too-long`.
    """
    from tunekit import deep_prompt

    found = attentions(model)
    sites = tuple(at for at in found if at.role in _SIDES[sides])
    positions = method.positions or ("shifted" if as_peft.reads(model, task, sites) else "natural")
    raise_all(_model_faults(method, model, found, sites, positions), UnsupportedError)
    heads, hidden = head_parameters(model, task), None
    if method.prefix_projection:
        hidden = method.encoder_hidden_size or sites[0].num_heads * sites[0].key_dim
    deep_prompt.attach(model, sites, method.num_virtual_tokens, hidden)
    if tokens is None:
        deep_prompt.set_random(model)
    else:
        deep_prompt.set_from_tokens(model, tokens, behind=positions == "shifted")
    deep_prompt.set_positions(model, positions, method.num_virtual_tokens)
    let_learn(model, heads | deep_prompt.learnt_by_prefixes(model))
    return model


def let_learn(model: nn.Module, names: frozenset[str]) -> None:
    """Lets the parameters of these names learn and freezes the others."""
    for name, p in model.named_parameters():
        p.requires_grad_(name in names)
    if getattr(model, "is_quantized", False):
        # The Trainer refuses a quantised model unless adapters are said to be on it (`validate_quantization_for_training`).
        vars(model)["_hf_peft_config_loaded"] = True


def _model_faults(
    method: Any, model: nn.Module, found: tuple[Attention, ...], sites: tuple[Attention, ...], positions: str
) -> list[Finding]:
    from tunekit.deep_prompt import places, position_modules

    kind = type(task_model(model)).__name__
    if not found:
        why = "it has attention code of its own, which no prefix can be put into"
        return [error("own-attention", f"method {method.slug} on a {kind}", why, NEAREST)]
    if not sites:
        seen = f"`sides: {method.sides}` on a {kind}"
        return [error("prefix-side", seen, "it has no such side", "set `sides: both`")]
    if fault := kernel_fault(model, sites):
        why = "a prefix can be joined to `sdpa`, `eager` and `flash_attention_2` to `4`"
        return [error("attention-kernel", f"a {kind} with {fault}", why, 'load it with `attn_implementation="sdpa"`')]
    rotary, tables = position_modules(model)
    if positions == "shifted" and not rotary and not tables:
        seen = f"`positions: shifted` on a {kind}"
        return [error("prefix-positions", seen, "it counts no absolute positions", "set `positions: natural`")]
    config: Any = task_model(model).config
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    room = min((places(t) for t in tables), default=context)
    if method.positions != "natural" and room is not None and method.num_virtual_tokens >= room:
        seen = f"`num_virtual_tokens: {method.num_virtual_tokens}` on a {kind}"
        why = f"its {room} positions leave no room for a real token"
        return [error("prompt-too-long", seen, why, f"set fewer than {room}, or `positions: natural`")]
    return []


# ---------------------------------------------------------------------------------------------- on disk
def is_checkpoint(folder: Path) -> bool:
    """Whether training is to go on from a folder, so that a reparameterisation must be kept."""
    return _CHECKPOINT.fullmatch(folder.name) is not None


def save(method: Any, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes the keys and values themselves, with the head: PEFT's files where PEFT gives the same logits, else ours.

    A Trainer's checkpoint holds what is being trained instead, the reparameterisation and all.
    """
    from tunekit import deep_prompt

    state = model.state_dict() if state_dict is None else state_dict
    names = method.trainable_names(model)
    if is_checkpoint(folder):
        return delta_format.save(model, folder, method, names, state)
    prefixes = deep_prompt.folded(model, state)
    head = {n: state[n] for n in names - deep_prompt.learnt_by_prefixes(model)}
    plain = as_folded(method, deep_prompt.positions_of(model))
    sites = tuple(p.at for p in deep_prompt.prefixes_of(model).values())
    task = delta_format.describe(model, plain)["task"]
    if plain.positions == "shifted" and as_peft.reads(model, Task.named(task), sites):
        as_peft.save(model, folder, Task.named(task), prefixes, head)
        write_json(folder / delta_format.CONFIG, delta_format.describe(model, plain))
        return None
    for name, (key, value) in prefixes.items():
        head |= {f"{name}.{CHILD}.key": key, f"{name}.{CHILD}.value": value}
    return delta_format.save(model, folder, plain, head, head)


def as_folded(method: Any, positions: str) -> Any:
    """The method that a folder without the reparameterisation belongs to."""
    return dataclasses.replace(method, prefix_projection=False, encoder_hidden_size=None, positions=positions)


def load_into(method: Any, model: nn.Module, folder: Path) -> nn.Module:
    """Fills a model that the method was applied to from a folder that `save`, or PEFT, wrote.

    Raises:
        UnreadableError: `adapter-corrupted`.
        UnsupportedError: `adapter-wrong-base`.
    """
    if (folder / peft_format.CONFIG).is_file():
        as_peft.load_into(model, folder, whole_head=(folder / delta_format.CONFIG).is_file())
    else:
        delta_format.load_into(model, folder, method.trainable_names(model))
    return model
