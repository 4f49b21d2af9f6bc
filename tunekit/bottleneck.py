"""Bottleneck adapters: small networks beside the residual stream, put into a live model and switched there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from tunekit.bottleneck_config import BottleneckConfig
from tunekit.errors import MissingError
from tunekit.finding import error, nearest
from tunekit.sublayers import Sublayer

CHILD = "bottlenecks"
"""Name of the adapters' module in each layer."""
DEFAULT = "default"
"""Name of the adapter that a method puts on a model."""


class CastLinear(nn.Linear):
    """A linear layer that computes in the type of its input; a module of its own, so that ZeRO-3 gathers it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype), self.bias.to(input.dtype))


class CastNorm(nn.LayerNorm):
    """A layer norm that computes in the type of its input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return nn.functional.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class Bottleneck(nn.Module):
    """One adapter in one place: down, a non-linearity, up. Parameters in fp32, computed in the type of its input."""

    def __init__(self, config: BottleneckConfig, width: int, units: int, device: torch.device) -> None:
        super().__init__()
        kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.config = config
        self.norm_before = CastNorm(width, **kind) if config.ln_before else None
        self.down = CastLinear(width, units, **kind)
        self.act = activation(config.non_linearity)
        self.up = CastLinear(units, width, **kind)
        self.norm_after = CastNorm(width, **kind) if config.ln_after else None
        self.dropout = nn.Dropout(config.dropout)
        learnt = {"learned": 1, "channel": width}
        self.scaling: nn.Parameter | float = config.scaling if isinstance(config.scaling, float) else 1.0
        if isinstance(config.scaling, str):
            self.scaling = nn.Parameter(torch.ones(learnt[config.scaling], **kind))
        initialise(self)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """What is added to the stream, or its sum with `residual` in the residual's type; (..., width) like `x`."""
        hidden = self.act(self.down(x if self.norm_before is None else self.norm_before(x)))
        out: torch.Tensor = self.up(hidden)
        factor = self.scaling
        if isinstance(factor, nn.Parameter):
            out, factor = out * factor.to(out.dtype), 1.0
        elif factor != 1.0 and (residual is None or self.norm_after is not None):
            out, factor = out * factor, 1.0
        out = self.dropout(out) if self.dropout.p else out
        out = out if self.norm_after is None else self.norm_after(out)
        # A fixed factor goes into the sum: no pass over the stream of its own.
        return out if residual is None else torch.add(residual, out.to(residual.dtype), alpha=factor)


def activation(name: str) -> nn.Module:
    """The module of a non-linearity's name."""
    from transformers.activations import ACT2FN

    return nn.LeakyReLU() if name == "leakyrelu" else ACT2FN[name]


@torch.no_grad()
def initialise(adapter: Bottleneck) -> None:
    """Values that change the model next to nothing (`bert`, `houlsby`) or nothing at all (`mam_adapter`)."""
    how = adapter.config.init_weights
    for layer in (adapter.down, adapter.up):
        nn.init.zeros_(layer.bias)
        if how == "bert":
            nn.init.normal_(layer.weight, std=0.02)
        elif how == "houlsby":
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
    if how == "mam_adapter":
        nn.init.kaiming_uniform_(adapter.down.weight, a=5**0.5)
        nn.init.zeros_(adapter.up.weight)


# ---------------------------------------------------------------------------------------------- at one place
class Site(nn.Module):
    """The adapters after one sublayer, and which of them are active.

    The sublayer's own modules are watched by hooks, as far as the active adapters need it: the first one that sees the
    stream, the one whose output is added to it, and the norm after the sum where there is one. The hooks hold this
    object and nothing of the model's names.
    """

    def __init__(self, at: Sublayer, norm: nn.Module | None) -> None:
        super().__init__()
        self.at = at
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.fusion: nn.Module | None = None
        # In a tuple: the norm belongs to the model, once.
        self._norm = (norm,)
        self.stream: torch.Tensor | None = None
        self.inside = False

    @property
    def norm(self) -> nn.Module | None:
        """The model's norm after the sum."""
        return self._norm[0]

    def chosen(self) -> list[Any]:
        """The active adapters that have a part here, in order."""
        return [self.adapters[name] for name in self.active if name in self.adapters]

    def reads_sum(self, chosen: list[Any]) -> bool:
        """Whether all of it can happen on the sum in front of the norm, which then need not be made twice."""
        return self.norm is not None and all(
            c.config.original_ln_before and c.config.residual_before_ln is True for c in chosen
        )

    def read(self, config: BottleneckConfig, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(what an adapter reads, what its output is added to), from the sublayer's output."""
        stream = self.stream
        if config.is_parallel:
            assert stream is not None, "the sublayer's first module comes before its last"
            return stream, out
        if not config.original_ln_before:
            return out, out
        assert stream is not None, "the sublayer's first module comes before its last"
        total = out + stream
        read = total if self.norm is None else self.norm(total)
        residual = {True: out, "post_add": total, False: read}[config.residual_before_ln]
        return read, residual


def _remember(site: Site, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before the sublayer's first module: the stream as it comes in."""
    site.stream = args[0] if args else next(iter(kwargs.values()))


def _after(site: Site, module: nn.Module, args: Any, output: Any) -> Any:
    """After the sublayer's last module: adds to its output."""
    chosen = site.chosen()
    out = output[0] if isinstance(output, tuple) else output
    if site.fusion is not None:
        read, residual = site.read(chosen[-1].config, out)
        out = residual + site.fusion(read, [adapter(read) for adapter in chosen]).to(residual.dtype)
    else:
        for adapter in chosen:
            read, residual = site.read(adapter.config, out)
            out = adapter(read, residual)
    site.stream = None
    return (out, *output[1:]) if isinstance(output, tuple) else out


def _before_norm(site: Site, module: nn.Module, args: tuple[Any, ...]) -> Any:
    """Before the norm of the sum: adds to the sum what the adapters make of its norm."""
    if site.inside:
        return None
    chosen, total = site.chosen(), args[0]
    for step in [chosen] if site.fusion is not None else [[c] for c in chosen]:
        site.inside = True
        try:
            read = module(total)
        finally:
            site.inside = False
        if site.fusion is None:
            total = step[0](read, total)
        else:
            total = total + site.fusion(read, [adapter(read) for adapter in step]).to(total.dtype)
    return (total, *args[1:])


# ---------------------------------------------------------------------------------------------- in a model
def put_sites(model: nn.Module, where: tuple[Sublayer, ...]) -> None:
    """Makes a place for adapters after each of these sublayers; changes nothing yet."""
    for at in where:
        block = model.get_submodule(at.block)
        if CHILD not in block._modules:
            block.add_module(CHILD, nn.ModuleDict())
        norm = None if at.norm is None else model.get_submodule(at.norm)
        site = Site(at, norm)
        block._modules[CHILD][at.location] = site


def sites(model: nn.Module) -> Iterator[Site]:
    """The places for adapters, in the order of the tree."""
    return (m for m in model.modules() if isinstance(m, Site))


def put_adapter(model: nn.Module, name: str, config: BottleneckConfig) -> int:
    """Puts a fresh adapter on every place that its configuration names; returns how many.

    The model's own parameters keep what they are; the adapter is not active yet.
    """
    count = 0
    for site in sites(model):
        units = config.units(site.at.width, site.at.index)
        if config.places(site.at.location) and units is not None:
            device = next(model.get_submodule(site.at.block).parameters()).device
            adapter = Bottleneck(config, site.at.width, units, device)
            site.adapters[name] = adapter.train(site.training)
            count += 1
    return count


def remove_adapter(model: nn.Module, name: str) -> None:
    """Takes an adapter off every place."""
    for site in sites(model):
        if name in site.adapters:
            del site.adapters[name]


@torch.no_grad()
def set_sum(model: nn.Module, name: str, parts: Sequence[str], weights: Sequence[float]) -> None:
    """Sets an adapter to the weighted sum of others of the same settings."""
    for site in sites(model):
        if name in site.adapters:
            terms = [dict(site.adapters[part].named_parameters()) for part in parts]
            for key, p in site.adapters[name].named_parameters():
                p.copy_(sum(w * term[key] for w, term in zip(weights, terms, strict=True)))


def activate(model: nn.Module, *names: str) -> None:
    """Makes these adapters active, one after the other, and no others."""
    for site in sites(model):
        site.active = names
        _watch(model, site)


def _watch(model: nn.Module, site: Site) -> None:
    """Hooks where the active adapters need them, and nowhere else: a hook costs every call of its module."""
    entry, exit_ = model.get_submodule(site.at.entry), model.get_submodule(site.at.exit)
    for module in (entry, exit_, *([] if site.norm is None else [site.norm])):
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(hook, partial) and hook.args and hook.args[0] is site:
                    del hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)
    chosen = site.chosen()
    if not chosen:
        return
    if site.reads_sum(chosen):
        assert site.norm is not None, "only a sum in front of a norm can be read there"
        site.norm.register_forward_pre_hook(partial(_before_norm, site))
        return
    exit_.register_forward_hook(partial(_after, site))
    if any(c.config.is_parallel or c.config.original_ln_before for c in chosen):
        entry.register_forward_pre_hook(partial(_remember, site), with_kwargs=True)


def last_active(model: nn.Module) -> str:
    """The adapter that acts last, which is the one that learns."""
    return next((site.active[-1] for site in sites(model) if site.active), DEFAULT)


def config_of(model: nn.Module, name: str) -> BottleneckConfig:
    """The settings of an adapter on a model.

    Raises:
        MissingError: `adapter-unknown`.
    """
    found: Any = next((site.adapters[name] for site in sites(model) if name in site.adapters), None)
    if found is None:
        have = names_of(model)
        seen = f"adapter {name!r}"
        raise MissingError(
            error("adapter-unknown", seen, f"on the model are {', '.join(have) or 'none'}", nearest(name, have))
        )
    return found.config


def names_of(model: nn.Module) -> tuple[str, ...]:
    """The adapters on a model, in the order they came."""
    return tuple(dict.fromkeys(name for site in sites(model) for name in site.adapters))


def parameters_of(model: nn.Module, name: str) -> frozenset[str]:
    """Names of the parameters of one adapter."""
    mark = f".adapters.{name}."
    return frozenset(n for n, _ in model.named_parameters() if f".{CHILD}." in f".{n}" and mark in n)
