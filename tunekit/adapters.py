"""Several adapters on one model: add, switch, stack, average, delete, without loading the base again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import adapter_files, peft_format
from tunekit.adapterhub_files import copy_into
from tunekit.bottleneck_config import BottleneckConfig
from tunekit.contracts import Method
from tunekit.errors import InvalidError, TunekitError, UnsupportedError
from tunekit.finding import Finding, error
from tunekit.snapshot import Prepared, prepared
from tunekit.structure import head_parameters, unwrapped

if TYPE_CHECKING:
    import torch
    from torch import nn

_HEADS = "_tunekit_heads"
"""The instance attribute with the heads of the adapters that are not active."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def add_adapter(model: nn.Module, name: str, adapter: Method | str | Path) -> nn.Module:
    """Puts one more adapter on a model that `prepare` or `load` put one on; `set_adapter` makes it active.

    Args:
        model: A model with a bottleneck adapter, or one of PEFT's. It is changed and returned.
        name: What the adapter is called on this model.
        adapter: A `BottleneckAdapter` for a fresh one, or the folder of a saved one. A saved head of the model's task
            and labels comes along and is switched with its adapter.

    Raises:
        InvalidError: `adapter-name`, `adapter-same-name`.
        MissingError: `adapter-missing`.
        UnsupportedError: `adapter-wrong-base`, `adapter-several`; the model is then what it was.

    Example:
        >>> import tunekit
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
        >>> method = tunekit.methods.BottleneckAdapter()
        >>> model = tunekit.prepare(BertForSequenceClassification(config), method, "sequence-classification")
        >>> model = tunekit.add_adapter(model, "second", method)
        >>> model = tunekit.set_adapter(model, "default", "second")  # one on top of the other
        >>> tunekit.adapter_names(model), tunekit.active_adapters(model)
        (('default', 'second'), ('default', 'second'))
    """
    what = _several(model, "add_adapter")
    _check_name(model, name)
    if _is_peft(model):
        if isinstance(adapter, Method):
            raise UnsupportedError(_peft_only("a fresh adapter", "use PEFT's own `add_adapter`"))
        peft_format.add(unwrapped(model), Path(adapter), name)
        return model
    from tunekit import bottleneck

    config = (
        getattr(adapter, "config", None) if isinstance(adapter, Method) else adapter_files.read_config(Path(adapter))
    )
    if not isinstance(config, BottleneckConfig):
        seen = f"add_adapter of `{getattr(adapter, 'slug', adapter)}`"
        raise UnsupportedError(error("adapter-kind", seen, "it is no bottleneck adapter", "pass a `BottleneckAdapter`"))
    if not bottleneck.put_adapter(model, name, config):
        why = "no place of the model is one of its"
        raise UnsupportedError(error("adapter-location", f"adapter {name!r}", why, "set `locations: [feed_forward]`"))
    try:
        if not isinstance(adapter, Method):
            adapter_files.fill(model, Path(adapter), name, what.task, with_head=False)
            if saved := adapter_files.head_values(model, Path(adapter), what.task):
                _heads(model)[name] = saved
    except TunekitError:
        bottleneck.remove_adapter(model, name)
        raise
    _let_learn(model, what)
    return model


def set_adapter(model: nn.Module, *names: str) -> nn.Module:
    """Makes one adapter active, or several one on top of the other; the last of them learns, and its head is put in.

    Args:
        model: A model with bottleneck adapters, or PEFT's (of which one at a time is active). Changed and returned.
        *names: Adapters on the model, in the order in which they act.

    Raises:
        MissingError: `adapter-unknown`.
        UnsupportedError: `adapter-several` for a model without such adapters, or with a fusion.

    Example:
        >>> import tunekit
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
        >>> method = tunekit.methods.BottleneckAdapter()
        >>> model = tunekit.prepare(BertForSequenceClassification(config), method, "sequence-classification")
        >>> model = tunekit.add_adapter(model, "second", method)
        >>> tunekit.active_adapters(tunekit.set_adapter(model, "second"))
        ('second',)
    """
    what = _several(model, "set_adapter")
    if _is_peft(model):
        if len(names) != 1:
            raise UnsupportedError(_peft_only(f"{len(names)} active adapters", "name one"))
        _known_to_peft(model, names[0])
        unwrapped(model).set_adapter(names[0])
        return model
    from tunekit import bottleneck

    if not names:
        raise InvalidError(error("adapter-name", "set_adapter without a name", "one adapter learns", "name one"))
    for name in names:
        bottleneck.config_of(model, name)
    before = active_adapters(model)
    heads = _heads(model)
    if before and before[-1] != names[-1]:
        heads[before[-1]] = _head_now(model, what)
        copy_into(model, heads.get(names[-1], {}))
    bottleneck.activate(model, *names)
    _let_learn(model, what)
    return model


def delete_adapter(model: nn.Module, name: str) -> nn.Module:
    """Takes an adapter that is not active off a model.

    Raises:
        MissingError: `adapter-unknown`.
        UnsupportedError: `adapter-active`.

    Example:
        >>> import tunekit
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
        >>> method = tunekit.methods.BottleneckAdapter()
        >>> model = tunekit.prepare(BertForSequenceClassification(config), method, "sequence-classification")
        >>> model = tunekit.add_adapter(model, "second", method)
        >>> tunekit.adapter_names(tunekit.delete_adapter(model, "second"))
        ('default',)
    """
    what = _several(model, "delete_adapter")
    if _is_peft(model):
        _known_to_peft(model, name)
    else:
        from tunekit import bottleneck

        bottleneck.config_of(model, name)
    if name in active_adapters(model):
        fix = "make another one active with `set_adapter` first"
        raise UnsupportedError(error("adapter-active", f"delete_adapter of {name!r}", "it is active", fix))
    if _is_peft(model):
        unwrapped(model).delete_adapter(name)
        return model
    bottleneck.remove_adapter(model, name)
    _heads(model).pop(name, None)
    _let_learn(model, what)
    return model


def add_weighted_adapter(
    model: nn.Module, adapters: Sequence[str], weights: Sequence[float], adapter_name: str
) -> nn.Module:
    """Puts on the weighted sum of several adapters' parameters, and of their heads, as a new adapter.

    Args:
        model: With those adapters on it. Changed and returned.
        adapters: Names of adapters of the same settings.
        weights: One for each; those of an average sum to one.
        adapter_name: What the new one is called.

    Raises:
        InvalidError: `adapter-weights`, `adapter-same-name`.
        MissingError: `adapter-unknown`.
        UnsupportedError: `adapter-settings` where their settings differ.

    Example:
        >>> import tunekit
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
        >>> method = tunekit.methods.BottleneckAdapter()
        >>> model = tunekit.prepare(BertForSequenceClassification(config), method, "sequence-classification")
        >>> model = tunekit.add_adapter(model, "second", method)
        >>> model = tunekit.add_weighted_adapter(model, ["default", "second"], [0.5, 0.5], "both")
        >>> tunekit.adapter_names(model)
        ('default', 'second', 'both')
    """
    what = _several(model, "add_weighted_adapter")
    if len(adapters) != len(weights) or not adapters:
        seen, why = f"{len(adapters)} adapters with {len(weights)} weights", "each adapter has one"
        raise InvalidError(error("adapter-weights", seen, why, "give as many weights as adapters"))
    if _is_peft(model):
        for name in adapters:
            _known_to_peft(model, name)
        unwrapped(model).add_weighted_adapter(list(adapters), list(weights), adapter_name, combination_type="linear")
        return model
    from tunekit import bottleneck

    _check_name(model, adapter_name)
    configs = [bottleneck.config_of(model, name) for name in adapters]
    if any(config != configs[0] for config in configs):
        why, fix = "their parameters are of different networks", "stack them with `set_adapter`, or fuse them"
        raise UnsupportedError(error("adapter-settings", f"a sum of {', '.join(adapters)}", why, fix))
    bottleneck.put_adapter(model, adapter_name, configs[0])
    bottleneck.set_sum(model, adapter_name, adapters, weights)
    if head := _summed_heads(model, what, adapters, weights):
        _heads(model)[adapter_name] = head
    _let_learn(model, what)
    return model


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """The adapters on a model, in the order they came.

    Example:
        >>> import torch
        >>> adapter_names(torch.nn.Linear(1, 1))  # `add_adapter` shows a model with two
        ()
    """
    if _is_peft(model):
        return tuple(unwrapped(model).peft_config)
    from tunekit import bottleneck

    return bottleneck.names_of(model)


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """The adapters that are active, in the order in which they act.

    Example:
        >>> import torch
        >>> active_adapters(torch.nn.Linear(1, 1))  # `add_adapter` shows a model with two
        ()
    """
    if _is_peft(model):
        return tuple(unwrapped(model).active_adapters)
    from tunekit import bottleneck

    return next((site.active for site in bottleneck.sites(model)), ())


# ---------------------------------------------------------------------------------------------- behind them
def _several(model: nn.Module, verb: str) -> Prepared:
    """What is on the model, where several adapters can be."""
    from tunekit import bottleneck

    what = prepared(model)
    fused = any(site.fusion is not None for site in bottleneck.sites(model))
    if what is None or fused or not (_is_peft(model) or bottleneck.names_of(model)):
        seen = f"{verb} on a {type(unwrapped(model)).__name__}"
        why = "its adapters are fused" if fused else "no adapter is on it that others can stand beside"
        fix = (
            "load the base and attach them with `tunekit.load`"
            if fused
            else "`tunekit.prepare` it with `BottleneckAdapter()`"
        )
        raise UnsupportedError(error("adapter-several", seen, why, fix))
    return what


def _is_peft(model: nn.Module) -> bool:
    return hasattr(unwrapped(model), "peft_config") and "base_model" in unwrapped(model)._modules


def _peft_only(seen: str, fix: str) -> Finding:
    return error("adapter-several", f"{seen} on a PEFT model", "PEFT has no such thing under this verb", fix)


def _known_to_peft(model: nn.Module, name: str) -> None:
    from tunekit.errors import MissingError
    from tunekit.finding import nearest

    if name not in (have := adapter_names(model)):
        raise MissingError(error("adapter-unknown", f"adapter {name!r}", "it is not on the model", nearest(name, have)))


def _check_name(model: nn.Module, name: str) -> None:
    if not _NAME.fullmatch(name):
        why = "a name has letters, digits, `_` and `-`"
        raise InvalidError(error("adapter-name", f"adapter {name!r}", why, "choose such a name"))
    if name in adapter_names(model):
        raise InvalidError(
            error("adapter-same-name", f"adapter {name!r}", "there is one already", "choose another name")
        )


def _heads(model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    return vars(unwrapped(model)).setdefault(_HEADS, {})


def _head_now(model: nn.Module, what: Prepared) -> dict[str, torch.Tensor]:
    wanted = head_parameters(model, what.task)
    return {n: p.detach().clone() for n, p in model.named_parameters() if n in wanted}


def _summed_heads(
    model: nn.Module, what: Prepared, adapters: Sequence[str], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """The weighted sum of the adapters' heads; empty where one of them came without."""
    heads = {**_heads(model), active_adapters(model)[-1]: _head_now(model, what)}
    if not all(heads.get(name) for name in adapters):
        return {}
    return {
        n: sum(w * heads[name][n].to(first.device) for name, w in zip(adapters, weights, strict=True))
        for n, first in heads[adapters[0]].items()
    }


def _let_learn(model: nn.Module, what: Prepared) -> None:
    """The last active adapter learns, and the head; a Trainer is told what it need not expect in a checkpoint."""
    from tunekit import bottleneck

    learnt: Any = head_parameters(model, what.task) | bottleneck.parameters_of(model, active_adapters(model)[-1])
    for name, p in model.named_parameters():
        p.requires_grad_(name in learnt)
    vars(unwrapped(model))["_keys_to_ignore_on_save"] = sorted(k for k in model.state_dict() if k not in learnt)
