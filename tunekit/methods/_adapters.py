"""What the methods with bottleneck adapters share: what is refused, where adapters go, and what learns."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunekit.bottleneck_config import BottleneckConfig
from tunekit.errors import UnsupportedError, raise_all
from tunekit.finding import Finding, error
from tunekit.structure import task_model
from tunekit.sublayers import LOCATIONS, Sublayer, sublayers
from tunekit.task import Task
from tunekit.workload import ModelFacts

if TYPE_CHECKING:
    from torch import nn

NEAREST = "use `method: {kind: lora}`, which works on the weights"


def refusal(slug: str, config: BottleneckConfig, model: ModelFacts, task: Task) -> Finding | None:
    """Why adapters cannot be put into such a model, or None; nothing but its shape is built."""
    found = _places(model.config_json, model.model_type, task.auto_class)
    return None if found is None else next(iter(_faults(slug, config, model.name, found)), None)


_STAND_IN = 4
"""Layers of a deep decoder or encoder that are looked at for all: those of such a stack differ, if at all, in the first few."""


@functools.lru_cache(maxsize=64)
def _places(config_json: str, model_type: str, auto_class: str) -> tuple[Sublayer, ...] | None:
    """The sublayers of a model of this configuration; None where it cannot be built from that alone."""
    import json

    import transformers

    try:
        values = {k: v for k, v in json.loads(config_json).items() if k != "model_type"}
        config = transformers.AutoConfig.for_model(model_type, **values)
        kind = getattr(transformers, auto_class)._model_mapping[type(config)]
        kind = kind[0] if isinstance(kind, tuple | list) else kind
        return _from_a_few(kind, config) or sublayers(_weightless(kind, config))
    except Exception:
        # Remote code, or a class of its own: whether adapters fit is then told by the live model.
        return None


def _weightless(kind: Any, config: Any) -> nn.Module:
    import torch

    with torch.device("meta"):
        # Not `from_config`: under ZeRO-3 that gathers parameters, on all ranks at once.
        model: nn.Module = kind(config)
    return model


def _from_a_few(kind: Any, config: Any) -> tuple[Sublayer, ...]:
    """The sublayers of a deep stack of equal layers, the last of a few standing for the rest; empty where that does not hold."""
    depth, types = getattr(config, "num_hidden_layers", None), getattr(config, "layer_types", None) or ()
    if config.is_encoder_decoder or not isinstance(depth, int) or depth <= _STAND_IN or len(set(types)) > 1:
        return ()
    short = copy.deepcopy(config)
    try:
        short.num_hidden_layers = _STAND_IN
        if types:
            short.layer_types = list(types[:_STAND_IN])
        found = sublayers(_weightless(kind, short))
    except Exception:  # a configuration whose other values go by the number of layers
        return ()
    if {at.index for at in found} != set(range(_STAND_IN)):
        return ()
    last = [at for at in found if at.index == _STAND_IN - 1]
    return (*found, *(replace(at, index=i) for i in range(_STAND_IN, depth) for at in last))


def _faults(slug: str, config: BottleneckConfig, kind: str, found: tuple[Sublayer, ...]) -> list[Finding]:
    if not found:
        why = "no sublayer whose output is added to the stream can be found in its layers"
        return [error("adapter-sites", f"method {slug} on {kind}", why, NEAREST)]
    have = {at.location for at in found}
    missing = [place for place in LOCATIONS if config.places(place) and place not in have]
    if missing:
        why, fix = f"it has {', '.join(sorted(have))}", f"set `locations: [{sorted(have)[-1]}]`"
        return [error("adapter-location", f"`locations` with {missing[0]} on {kind}", why, fix)]
    layers = {at.index for at in found}
    if out := [i for i in config.leave_out if i not in layers]:
        why = f"its layers are 0 to {max(layers)}"
        return [error("adapter-layer", f"`leave_out` with {out[0]} on {kind}", why, "leave out what is there")]
    if not any(config.places(at.location) and config.units(at.width, at.index) is not None for at in found):
        return [error("adapter-layer", f"no layer of {kind} with an adapter", "nothing would learn", "leave out fewer")]
    return []


def prepare_sites(slug: str, config: BottleneckConfig, model: nn.Module) -> None:
    """Makes a place for adapters after every sublayer of a model.

    Raises:
        UnsupportedError: `adapter-sites`, `adapter-location`, `adapter-layer`.
    """
    from tunekit import bottleneck

    found = sublayers(model)
    raise_all(_faults(slug, config, f"a {type(task_model(model)).__name__}", found), UnsupportedError)
    bottleneck.put_sites(model, found)


def let_learn(model: nn.Module, learnt: frozenset[str]) -> nn.Module:
    """Lets these parameters learn and nothing else."""
    for name, p in model.named_parameters():
        p.requires_grad_(name in learnt)
    if getattr(model, "is_quantized", False):
        # The Trainer refuses a quantised model unless adapters are said to be on it (`validate_quantization_for_training`).
        vars(model)["_hf_peft_config_loaded"] = True
    return model
