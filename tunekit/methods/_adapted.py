"""Which modules IA3, LayerNorm tuning and PEFT's other adapters sit on, by structure, and what is wrong with a choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tunekit.finding import Finding, error, nearest
from tunekit.methods._lora_targets import ends_in, outside
from tunekit.structure import attention_names, blocks, features, linear_names, norm_names

if TYPE_CHECKING:
    from torch import nn

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_KEYS_OR_VALUES = re.compile(
    r"(?:w|lin|linear|to|in|c)?_?(?:k|v|keys?|values?|kv|key_value|qkv|query_key_value)(?:_(?:proj|projection|lin|linear|layer|head))*",
    re.IGNORECASE,
)
"""What the last part of a name says of a projection: it makes keys, values, or them together with the queries."""


# ---------------------------------------------------------------------------------------------- by structure
def keys_and_values(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the linear layers that make the keys and the values of attention.

    Where one layer makes queries, keys and values together it is that one. Where names say nothing, it is the layers
    of an attention module that widen, and without such all but the last.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> keys_and_values(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)))
        ('transformer.h.0.attn.c_attn',)
    """
    groups: dict[str, list[str]] = {}
    for name in attention_names(model):
        groups.setdefault(_attention_root(name), []).append(name)
    return tuple(name for names in groups.values() for name in _keys_and_values_of(model, names))


def _attention_root(name: str) -> str:
    """The name up to the module that the whole attention lies in."""
    parts = name.split(".")
    first = next(i for i, part in enumerate(parts) if _ATTENTION.search(part))
    return ".".join(parts[: first + 1])


def _keys_and_values_of(model: nn.Module, names: list[str]) -> list[str]:
    named = [n for n in names if _KEYS_OR_VALUES.fullmatch(n.rsplit(".", 1)[-1])]
    if named:
        return named
    wide = [n for n in names if _widens(model, n)]
    return wide or names[:-1] or names


def _widens(model: nn.Module, name: str) -> bool:
    into, out = features(model.get_submodule(name))
    return out > into


def second_feedforward(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the linear layers that end the feed-forward networks: they take back to the model's width what an
    earlier layer of the same block widened.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> second_feedforward(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)))
        ('transformer.h.0.mlp.c_proj',)
    """
    attention = set(attention_names(model))
    others = [n for n in linear_names(model) if n not in attention]
    found: list[str] = []
    for name, layers in blocks(model):
        for i in range(len(layers)):
            own = [n for n in others if n.startswith(f"{name}.{i}.")]
            found += _last_of_each([n for k, n in enumerate(own) if _goes_back(model, n, own[:k])])
    return tuple(found)


def _goes_back(model: nn.Module, name: str, earlier: Sequence[str]) -> bool:
    """Whether a layer undoes an earlier one; a gate and what it gates may come out of one layer of twice the width."""
    into, out = features(model.get_submodule(name))
    return any(a == out and b in (into, 2 * into) for a, b in (features(model.get_submodule(n)) for n in earlier))


def _last_of_each(names: list[str]) -> list[str]:
    """The last of those that lie in one module."""
    return list({n.rpartition(".")[0]: n for n in names}.values())


def norms(model: nn.Module, heads: Sequence[str]) -> tuple[str, ...]:
    """Dotted names of the normalisation layers outside the task's head, which is trained whole.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> norms(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)), ())
        ('transformer.h.0.ln_1', 'transformer.h.0.ln_2', 'transformer.ln_f')
    """
    names = dict.fromkeys(n.rpartition(".")[0] for n in norm_names(model))
    return outside(tuple(names), heads)


# ---------------------------------------------------------------------------------------------- what is wrong
def missing(model: nn.Module, slug: str, field: str, wanted: object, names: Iterable[str]) -> list[Finding]:
    """Names and patterns of a field that match no module of the model."""
    found, known = list(names), sorted({n.rsplit(".", 1)[-1] for n in linear_names(model)})
    if isinstance(wanted, str):
        unmatched = [] if found else [wanted]
    else:
        unmatched = [
            w for w in (wanted if isinstance(wanted, tuple) else ()) if not any(ends_in(n, [w]) for n in found)
        ]
    why = "no module of this model is called so"
    return [error(f"{slug}-target-missing", f"`{field}` {w!r}", why, nearest(w, known)) for w in unmatched]


def unknown_modules(model: nn.Module, slug: str, wanted: Sequence[str]) -> list[Finding]:
    """Entries of `modules_to_save` that name nothing."""
    names, why = [n for n, _ in model.named_modules()], "no module of this model is called so"
    lost = [w for w in wanted if not any(ends_in(n, [w]) for n in names)]
    return [error(f"{slug}-module-missing", f"`modules_to_save` {w!r}", why, "check the name") for w in lost]


# ---------------------------------------------------------------------------------------------- merging
def merged(model: nn.Module) -> nn.Module:
    """PEFT's `merge_and_unload` of a model with a trained head.

    The trained modules are taken out of their wrappers first: most of PEFT's adapters fail on a head that is more than
    one layer, and the one for norms leaves heads wrapped (PEFT 0.21, `BaseTuner._replace_module` and
    `LNTuningModel._unload_and_optionally_merge`).
    """
    from peft.utils.other import AuxiliaryTrainingWrapper

    inner = model.get_base_model()
    wrapped = [(n, m) for n, m in inner.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    for name, wrapper in wrapped:
        plain = wrapper.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        _put(inner, name, plain)
    try:
        return model.merge_and_unload()
    except BaseException:
        for name, wrapper in wrapped:
            _put(inner, name, wrapper)
        raise


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    above, _, last = name.rpartition(".")
    setattr(model.get_submodule(above), last, module)
