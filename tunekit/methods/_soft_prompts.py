"""What prompt tuning and P-tuning share: where the vectors go, what is refused, and the folders they are saved in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import delta_format, peft_format
from tunekit.errors import UnsupportedError, raise_all
from tunekit.files import write_json
from tunekit.finding import Finding, error
from tunekit.methods import _deep_prompts as deep
from tunekit.methods import _soft_peft as as_peft
from tunekit.methods._deep_prompts import Positions
from tunekit.methods._head_rate import direct_rate, network_rate
from tunekit.structure import base_name, head_parameters, task_model
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tunekit.prompt_vectors import AnyVectors

__all__ = ["Positions", "apply", "load_into", "rate", "refusal", "save", "token_faults"]


# ---------------------------------------------------------------------------------------------- before a model
def token_faults(method: Any) -> list[Finding]:
    """What is wrong with the number of virtual tokens."""
    if method.num_virtual_tokens >= 1:
        return []
    seen = f"`num_virtual_tokens` of `{type(method).__name__}` is {method.num_virtual_tokens}"
    return [error(f"{method.slug}-tokens", seen, "a prompt has at least one token", "set 10 to 100")]


def refusal(method: Any, model: ModelFacts) -> Finding | None:
    """Why a prompt cannot go into such a model, or None."""
    length = model.context_length
    return None if length is None else _longer(method, model.name, length)


def _longer(method: Any, name: str, length: int) -> Finding | None:
    if method.num_virtual_tokens < length:
        return None
    seen = f"`num_virtual_tokens: {method.num_virtual_tokens}` on {name}"
    return error(
        "prompt-too-long", seen, f"its {length} positions leave no room for a real token", f"set fewer than {length}"
    )


def rate(workload: Workload, direct: bool) -> float:
    """Learning rate by what is learnt, the vectors themselves (`direct`) or a network, and beside which head."""
    if workload.task.has_head:
        return direct_rate(workload) if direct else float(f"{2.5 * network_rate(workload):.1e}")
    if workload.model.side == "seq2seq":
        return 0.3 if direct else 1e-3
    return 1e-3 if direct else 1e-4


# ---------------------------------------------------------------------------------------------- on a model
def apply(method: Any, model: nn.Module, task: Task, vectors: Callable[[int, torch.device], AnyVectors]) -> nn.Module:
    """Puts vectors into the model's input and lets them and the task's head learn, and nothing else.

    Args:
        method: The settings.
        model: A model of the task; changed in place.
        task: Whose head learns too.
        vectors: Makes them, given their width and device; called when nothing more can be refused.

    Raises:
        UnsupportedError: `prompt-no-base`, `prompt-positions`, `prompt-too-long`.
    """
    from tunekit import soft_prompt

    raise_all(_model_faults(method, model), UnsupportedError)
    stack = soft_prompt.stack_of(model)
    positions = method.positions or _positions(model, task, stack)
    embed: Any = soft_prompt.embedding_of(stack)
    heads = head_parameters(model, task)
    made = vectors(soft_prompt.width_of(stack), embed.weight.device)
    soft_prompt.attach(model, made, method.num_virtual_tokens, positions)
    deep.let_learn(model, heads | soft_prompt.learnt_by_prompt(model))
    return model


def _positions(model: nn.Module, task: Task, stack: nn.Module) -> Positions:
    """Shifted where PEFT can read what is saved, or nothing else is possible; otherwise as in pretraining."""
    from tunekit.soft_prompt import has_own_positions

    return "shifted" if as_peft.reads(model, task) or has_own_positions(stack) else "natural"


def _model_faults(method: Any, model: nn.Module) -> list[Finding]:
    from tunekit import soft_prompt

    kind = type(task_model(model)).__name__
    if not base_name(model) and not soft_prompt.is_seq2seq(model):
        why = "it has no pretrained base below the head, so the virtual tokens would be in what it answers"
        return [error("prompt-no-base", f"method {method.slug} on a {kind}", why, deep.NEAREST)]
    stack: Any = soft_prompt.stack_of(model)
    if method.positions == "natural" and soft_prompt.has_own_positions(stack):
        why = "its own code counts its learnt positions"
        return [error("prompt-positions", f"`positions: natural` on a {kind}", why, "set `positions: shifted`")]
    length = soft_prompt.room(stack) or getattr(stack.config.get_text_config(), "max_position_embeddings", None)
    fault = _longer(method, f"a {kind}", length) if length else None
    return [fault] if fault else []


# ---------------------------------------------------------------------------------------------- on disk
def save(method: Any, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes the vectors themselves, with the head: PEFT's files where PEFT gives the same logits, else ours.

    A Trainer's checkpoint holds what is being trained instead, with a network that makes the vectors.
    """
    from tunekit import soft_prompt

    state = model.state_dict() if state_dict is None else state_dict
    names = method.trainable_names(model)
    if deep.is_checkpoint(folder):
        return delta_format.save(model, folder, method, names, state)
    vectors, (name, prompt) = soft_prompt.folded(model, state), soft_prompt.prompt_of(model)
    plain = as_folded(method, prompt.positions)
    what = delta_format.describe(model, plain)
    task = Task.named(what["task"])
    if as_peft.reads(model, task) and _stands_as_in_peft(model, prompt.positions):
        as_peft.save(model, folder, task, plain, vectors)
        write_json(folder / delta_format.CONFIG, what)
        return None
    head = {n: state[n] for n in names - soft_prompt.learnt_by_prompt(model)}
    learnt = {**head, f"{name}.vectors.weight": vectors}
    return delta_format.save(model, folder, plain, learnt, learnt)


def as_folded(method: Any, positions: str) -> Any:
    """The method that a folder of plain vectors belongs to."""
    network = {f.name: f.default for f in dataclasses.fields(method) if f.name.startswith("encoder_")}
    no_network = {**network, "encoder": None} if network else {}
    return dataclasses.replace(method, positions=positions, **no_network)


def _stands_as_in_peft(model: nn.Module, positions: str) -> bool:
    from tunekit import soft_prompt

    return positions == "shifted" or soft_prompt.room(soft_prompt.stack_of(model)) is None


def load_into(method: Any, model: nn.Module, folder: Path) -> nn.Module:
    """Fills a model that the method was applied to from a folder that `save`, or PEFT, wrote.

    Raises:
        UnreadableError: `adapter-corrupted`.
        UnsupportedError: `adapter-wrong-base`.
    """
    if (folder / peft_format.CONFIG).is_file():
        as_peft.load_into(model, folder)
    else:
        delta_format.load_into(model, folder, method.trainable_names(model))
    return model
