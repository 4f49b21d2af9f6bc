"""Deep prompts: learnt keys and values in front of every attention module's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tunekit.attention import Attention
from tunekit.errors import UnsupportedError
from tunekit.finding import error
from tunekit.prefix_attention import CHILD, route
from tunekit.structure import base_model, base_name

_POSITIONS = "_deep_prompt_positions"
"""The base's instance attribute that says where its tokens stand."""

Tensors = tuple[torch.Tensor, torch.Tensor]


class Prefix(nn.Module):
    """The learnt keys and values of one attention module, each (heads, num_virtual_tokens, width), in fp32.

    A module with a forward of its own, so that ZeRO-3 gathers it where it is used.
    """

    def __init__(self, at: Attention, num_virtual_tokens: int, device: torch.device) -> None:
        super().__init__()
        kind = {"dtype": torch.float32, "device": device}
        self.key = nn.Parameter(torch.empty(at.num_heads, num_virtual_tokens, at.key_dim, **kind))
        self.value = nn.Parameter(torch.empty(at.num_heads, num_virtual_tokens, at.value_dim, **kind))
        self.at = at
        self.was_read = self.listens = False
        self.heard: Tensors | None = None

    def forward(self) -> Tensors:
        return self.key, self.value

    def fold(self, state: Mapping[str, torch.Tensor], base: str) -> Tensors:
        """The keys and values out of a state of the whole model."""
        return state[f"{self.at.name}.{CHILD}.key"], state[f"{self.at.name}.{CHILD}.value"]


class Trunk(nn.Module):
    """The part of the reparameterisation that the layers of one role share: virtual tokens and a hidden layer."""

    def __init__(self, num_virtual_tokens: int, width: int, hidden: int, device: torch.device) -> None:
        super().__init__()
        kind = {"dtype": torch.float32, "device": device}
        self.embedding = nn.Embedding(num_virtual_tokens, width, **kind)
        self.hidden = nn.Linear(width, hidden, **kind)

    def forward(self) -> torch.Tensor:
        return torch.tanh(self.hidden(self.embedding.weight))


class ProjectedPrefix(nn.Module):
    """A prefix computed by a two-layer network whose first layer is shared (Li & Liang 2021).

    It is computed inside the attention's forward, a few virtual tokens through two linear layers, so that activation
    checkpointing of either kind recomputes it like everything else and no graph is kept from one layer to the next.
    """

    def __init__(self, at: Attention, trunk: Trunk, device: torch.device) -> None:
        super().__init__()
        width = at.num_heads * (at.key_dim + at.value_dim)
        self.out = nn.Linear(trunk.hidden.out_features, width, dtype=torch.float32, device=device)
        # In a tuple: the trunk's parameters belong to the base, once.
        self._trunk = (trunk,)
        self.at = at
        self.was_read = self.listens = False
        self.heard: Tensors | None = None

    def forward(self) -> Tensors:
        return self._split(self.out(self._trunk[0]()))

    def fold(self, state: Mapping[str, torch.Tensor], base: str) -> Tensors:
        """The keys and values computed from a state of the whole model, whose base has this dotted name."""
        trunk = f"{base}.{CHILD}.{self.at.role}" if base else f"{CHILD}.{self.at.role}"
        out = f"{self.at.name}.{CHILD}.out"
        hidden = nn.functional.linear(
            state[f"{trunk}.embedding.weight"], state[f"{trunk}.hidden.weight"], state[f"{trunk}.hidden.bias"]
        )
        return self._split(nn.functional.linear(torch.tanh(hidden), state[f"{out}.weight"], state[f"{out}.bias"]))

    def _split(self, rows: torch.Tensor) -> Tensors:
        heads = self.at.num_heads
        key, value = rows.split([heads * self.at.key_dim, heads * self.at.value_dim], dim=-1)
        return key.unflatten(-1, (heads, -1)).transpose(0, 1), value.unflatten(-1, (heads, -1)).transpose(0, 1)


AnyPrefix = Prefix | ProjectedPrefix


# ---------------------------------------------------------------------------------------------- into a model
def attach(model: nn.Module, sites: tuple[Attention, ...], num_virtual_tokens: int, hidden: int | None = None) -> None:
    """Puts a prefix on every named attention module and routes the model's attention through it.

    Args:
        model: A transformers model; changed in place.
        sites: Where to; see `tunekit.attention.attentions`.
        num_virtual_tokens: Keys and values put in front.
        hidden: Width of the reparameterisation's hidden layer; None: the prefixes themselves are learnt, and their
            values are yet to be set.
    """
    base = base_model(model)
    width = base.config.get_text_config().hidden_size
    trunks: dict[str, Trunk] = {}
    for at in sites:
        module = model.get_submodule(at.name)
        device = next(p.device for p in module.parameters())
        if hidden is None:
            module.add_module(CHILD, Prefix(at, num_virtual_tokens, device))
        else:
            trunk = trunks.setdefault(at.role, Trunk(num_virtual_tokens, width, hidden, device))
            module.add_module(CHILD, ProjectedPrefix(at, trunk, device))
        module.register_forward_pre_hook(_about_to_read)
        module.register_forward_hook(_must_have_read)
    if trunks:
        base.add_module(CHILD, nn.ModuleDict(trunks))
    route(model)


def prefixes_of(model: nn.Module) -> dict[str, AnyPrefix]:
    """The prefixes in a model by the names of their attention modules, in the order of the tree."""
    return {m.at.name: m for m in model.modules() if isinstance(m, AnyPrefix)}


def learnt_by_prefixes(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of prefixes and what they are computed from."""
    return frozenset(n for n, _ in model.named_parameters() if CHILD in n.split("."))


def _about_to_read(module: nn.Module, args: Any) -> None:
    prefix: Any = module._modules.get(CHILD)
    if prefix is not None:
        prefix.was_read = False


def _must_have_read(module: nn.Module, args: Any, output: Any) -> None:
    """After every forward of an attention module with a prefix: the prefix must have been used."""
    prefix: Any = module._modules.get(CHILD)
    if prefix is not None and not prefix.was_read:
        raise UnsupportedError(
            error(
                "deep-prompt-unread",
                f"a `{type(module).__name__}` that ran without its prefix",
                "its attention was routed past the prefix, so what was learnt would have no effect",
                "leave `attn_implementation` as it was when the method was applied, or choose it before",
            )
        )


# ---------------------------------------------------------------------------------------------- where tokens stand
def shift_positions(model: nn.Module, offset: int) -> list[RemovableHandle]:
    """Lets the first real token stand at position `offset`, behind the prefix."""
    rotary, tables = position_modules(model)
    handles = [m.register_forward_pre_hook(partial(_shift_rotary, offset), with_kwargs=True) for m in rotary]
    handles += [m.register_forward_pre_hook(partial(_shift_table, offset)) for m in tables]
    return handles


def set_positions(model: nn.Module, positions: str, num_virtual_tokens: int) -> None:
    """Places the real tokens, `shifted` behind the prefix or where they stand without one (`natural`)."""
    if positions == "shifted":
        shift_positions(model, num_virtual_tokens)
    vars(base_model(model))[_POSITIONS] = positions


def positions_of(model: nn.Module) -> str:
    """What `set_positions` was told."""
    return str(vars(base_model(model))[_POSITIONS])


def position_modules(model: nn.Module) -> tuple[list[nn.Module], list[nn.Embedding]]:
    """The modules where positions enter the model: rotary embeddings, and plain tables of learnt ones."""
    rotary = [
        m
        for m in base_model(model).modules()
        if any("inv_freq" in b for b in m._buffers) and "position_ids" in inspect.signature(m.forward).parameters
    ]
    return rotary, [t for t in position_tables(base_model(model)) if type(t) is nn.Embedding]


def position_tables(stack: nn.Module) -> list[nn.Embedding]:
    """The tables of learnt positions in a stack; one that is no plain `nn.Embedding` counts positions by itself."""
    named = ((name.rpartition(".")[2], m) for name, m in stack.named_modules())
    return [m for last, m in named if isinstance(m, nn.Embedding) and (last == "wpe" or "position" in last)]


def _shift_rotary(offset: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    if "position_ids" in kwargs:
        return args, {**kwargs, "position_ids": kwargs["position_ids"] + offset}
    # The hidden states come first, the positions second.
    return (args[0], args[1] + offset, *args[2:]), kwargs


def _shift_table(offset: int, module: nn.Embedding, args: tuple[Any, ...]) -> tuple[Any, ...]:
    positions, padding = args[0], module.padding_idx
    room = places(module) - offset
    if positions.shape[-1] > room:
        raise UnsupportedError(
            error(
                "deep-prompt-too-long",
                f"rows of {positions.shape[-1]} tokens behind {offset} virtual ones",
                f"the model has {places(module)} positions",
                f'truncate to {room} tokens, or set `positions="natural"`',
            )
        )
    shifted = positions + offset
    return (shifted if padding is None else torch.where(positions == padding, positions, shifted), *args[1:])


def places(table: nn.Embedding) -> int:
    """Positions that a real token can take; some tables keep their first rows for padding."""
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


# ---------------------------------------------------------------------------------------------- values
@torch.no_grad()
def set_random(model: nn.Module, std: float = 1.0) -> None:
    """Normal keys and values, standard ones as in P-tuning v2 and PEFT, whose learning rates go with them.

    A reparameterisation keeps torch's own initialisation of its layers.
    """
    for prefix in prefixes_of(model).values():
        if isinstance(prefix, Prefix):
            nn.init.normal_(prefix.key, std=std)
            nn.init.normal_(prefix.value, std=std)


@torch.no_grad()
def set_from_tokens(model: nn.Module, tokens: torch.Tensor, behind: bool) -> None:
    """Real keys and values: those that these tokens have in every layer of the model.

    Args:
        model: With prefixes on it and before positions are shifted.
        tokens: (num_virtual_tokens,) ids; an encoder-decoder reads them on both sides.
        behind: Whether the real tokens will stand behind the prefix; otherwise rotary positions before zero are used,
            so that the distances are right all the same.
    """
    base, prefixes = base_model(model), prefixes_of(model)
    device = base.get_input_embeddings().weight.device
    inputs = {"input_ids": tokens[None].to(device), "attention_mask": torch.ones_like(tokens[None]).to(device)}
    if "decoder_input_ids" in inspect.signature(base.forward).parameters:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    training = [m for m in model.modules() if m.training]
    with ExitStack() as back:
        for handle in [] if behind or position_modules(model)[1] else shift_positions(model, -len(tokens)):
            back.callback(handle.remove)
        for m in training:
            back.callback(setattr, m, "training", True)
        for prefix in prefixes.values():
            prefix.listens = True
            back.callback(setattr, prefix, "listens", False)
        model.eval()
        base(**inputs)
    for prefix in prefixes.values():
        assert isinstance(prefix, Prefix), "a reparameterised prefix cannot be set"
        assert prefix.heard is not None, prefix.at.name
        prefix.key.copy_(prefix.heard[0][0])
        prefix.value.copy_(prefix.heard[1][0])
        prefix.heard = None


@torch.no_grad()
def folded(model: nn.Module, state_dict: Mapping[str, torch.Tensor] | None = None) -> dict[str, Tensors]:
    """The keys and values of every prefix as plain tensors, whatever they are computed from.

    Args:
        model: With prefixes on it.
        state_dict: The model's whole state where only the host can gather it (ZeRO-3, FSDP); None: the model's own.
    """
    state, base = model.state_dict() if state_dict is None else state_dict, base_name(model)
    return {name: prefix.fold(state, base) for name, prefix in prefixes_of(model).items()}
