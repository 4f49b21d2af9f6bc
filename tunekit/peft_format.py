"""PEFT's folder format: reading what tunekit, PEFT or anybody saved with it, and saving what plain PEFT can reload."""

from __future__ import annotations

import json
import re
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.delta_format import corrupted, raise_mismatch, reason, shapes, wrong_base
from tunekit.errors import UnreadableError, UnsupportedError
from tunekit.files import write_json
from tunekit.finding import error
from tunekit.structure import expert_names, is_linear, task_model

if TYPE_CHECKING:
    import torch
    from torch import nn

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"

_CHANGES_BASE = re.compile(r"pissa|olora|corda|loftq|lora_ga")
"""Initialisations that subtract the adapter's first value from the base's weights."""


_FOR_PEFT = re.compile(
    r"`is_gradient_checkpointing` is deprecated|Unsupported layer type '<class '.*norm.*'>'", re.IGNORECASE
)
"""Warnings that only PEFT's authors can act on: 0.21 asks transformers 5.23 by a name that it calls deprecated, and its
own LayerNorm tuning wonders at norms. Delete when PEFT no longer does."""


def wrap(model: nn.Module, config: Any) -> nn.Module:
    """PEFT's `get_peft_model` without the warnings that only PEFT's authors can act on."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_FOR_PEFT.pattern)
        return get_peft_model(model, config)


def save(model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes the adapter as PEFT does."""
    model.save_pretrained(str(folder), **({} if state_dict is None else {"state_dict": state_dict}))


def read_config(folder: Path) -> Any:
    """The `PeftConfig` of a folder.

    Raises:
        UnreadableError: `adapter-corrupted`, `adapter-pickled` for weights that only unpickling could read.
    """
    from peft import PeftConfig

    path = folder / CONFIG
    try:
        data = json.loads(path.read_text("utf-8"))
        if not isinstance(data, dict) or "peft_type" not in data:
            raise ValueError("it names no `peft_type`")
        if data.get("megatron_config"):
            raise ValueError("`megatron_config` names code to import, which an adapter must not")
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise UnreadableError(corrupted(path, reason(e))) from None
    if not (folder / WEIGHTS).is_file():
        if (folder / PICKLED).is_file():
            raise UnreadableError(
                error(
                    "adapter-pickled", f"{folder / PICKLED}", "unpickling a file can run code hidden in it",
                    f"ask for {WEIGHTS}, or save it again with PEFT's `save_pretrained` (safetensors is its default)",
                )
            )  # fmt: skip
        raise UnreadableError(corrupted(folder / WEIGHTS, "no such file"))
    largest = max((n for shape in shapes(folder / WEIGHTS).values() for n in shape), default=0)
    if absurd := [f"`{k}: {v:,}`" for k, v in _sizes(data) if v > max(largest, _MOST_HIDDEN if k in _UNSAVED else 0)]:
        raise UnreadableError(corrupted(path, f"{absurd[0]} is larger than anything in {WEIGHTS}"))
    return config


_UNSAVED, _MOST_HIDDEN = ("encoder_hidden_size",), 100_000
"""A size of what PEFT does not save, which must be allocated all the same."""


def _sizes(data: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Figures of a configuration by which PEFT allocates before it looks at the weights."""
    named = [(k, data.get(k)) for k in ("r", "init_r", "num_virtual_tokens", *_UNSAVED)]
    patterns = data.get("rank_pattern")
    named += [("rank_pattern", v) for v in (patterns.values() if isinstance(patterns, dict) else ())]
    return [(k, v) for k, v in named if isinstance(v, int)]


def load(model: nn.Module, folder: Path) -> nn.Module:
    """Attaches a saved adapter as `default`; weights that do not fit the model are refused.

    Called under a snapshot: what was half done when this raises is undone by the caller.

    Raises:
        UnreadableError: as `read_config`.
        UnsupportedError: `adapter-wrong-base`.
    """
    from peft import PeftModel

    config = read_config(folder)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            attached = PeftModel.from_pretrained(model, str(folder), is_trainable=not config.is_prompt_learning)
        except (ValueError, RuntimeError, KeyError, AttributeError, TypeError, IndexError) as e:
            raise UnsupportedError(wrong_base(folder, reason(e))) from None
    _check_all_loaded(folder, attached, "default", [str(w.message) for w in said])
    for w in said:
        if not _FOR_PEFT.match(str(w.message)):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    return attached


def add(model: nn.Module, folder: Path, name: str) -> None:
    """Loads a further adapter beside those that are there, frozen, under a name of its own.

    Raises:
        UnreadableError: as `read_config`.
        UnsupportedError: `adapter-wrong-base`.
    """
    read_config(folder)
    try:
        result = model.load_adapter(str(folder), name)
    except (ValueError, RuntimeError, KeyError, AttributeError, TypeError, IndexError) as e:
        raise UnsupportedError(wrong_base(folder, reason(e))) from None
    _check_all_loaded(folder, model, name, [f"missing {k}" for k in result.missing_keys])


def _check_all_loaded(folder: Path, model: nn.Module, name: str, said: list[str]) -> None:
    """Every tensor of the folder went somewhere, and none that the adapter has was missing.

    PEFT renames tensors of older mixture-of-experts models while it loads them, so names are not compared there.
    """
    from peft import get_peft_model_state_dict

    if missing := [s for s in said if "missing" in s]:
        raise UnsupportedError(wrong_base(folder, " ".join(missing[0].split())[:200]))
    if expert_names(task_model(model)):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    have = shapes(folder / WEIGHTS)
    extra = {k for k in have if k not in own and ("embed" in k or "lm_head" in k)}
    raise_mismatch(
        folder,
        {k: v for k, v in have.items() if k not in extra},
        {k: tuple(v.shape) for k, v in own.items() if k in have},
    )


def changed_weights(model: nn.Module, config: Any, folder: Path | None = None) -> frozenset[str]:
    """Names of the base's weights that attaching an adapter of this configuration (or from this folder) overwrites."""
    names = dict(model.named_parameters())
    stored = {k.removeprefix("base_model.model.") for k in shapes(folder / WEIGHTS)} if folder else set()
    changed = {n for n in stored if n in names}
    init = getattr(config, "init_lora_weights", None)
    if isinstance(init, str) and _CHANGES_BASE.search(init):
        from peft.tuners.tuners_utils import check_target_module_exists

        linear = (n for n, m in model.named_modules() if is_linear(m) and check_target_module_exists(config, n))
        changed |= {f"{n}.weight" for n in linear}
    return frozenset(changed)


def save_as_plain_lora(model: nn.Module) -> None:
    """Makes a LoRA whose initialisation changed the base save itself as one that does not need the change.

    PiSSA and OLoRA start from the base's own weights, W = R + s B0 A0, and train B A on the rest R. Reloading would
    have to find the same B0 A0 again, which a randomised decomposition does not. What is saved instead is the change
    itself, W + s (B A - B0 A0): a plain LoRA of twice the rank on the untouched base (as PEFT's
    `path_initial_model_for_weight_conversion`). The model's own `load_adapter` takes its half back out of such a
    folder, so that a Trainer resumes from it.

    Args:
        model: A PeftModel with one adapter, `default`, just initialised.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    vars(model)["_tunekit_first"] = {k: v.detach().cpu().clone() for k, v in state.items() if _half(k) is not None}
    vars(model)["save_pretrained"] = types.MethodType(_save_doubled, model)
    vars(model)["load_adapter"] = types.MethodType(_load_half, model)


def _half(name: str) -> int | None:
    """The dimension that holds the rank in a LoRA matrix; None for any other tensor."""
    return 0 if ".lora_A." in name else 1 if ".lora_B." in name else None


def _save_doubled(self: Any, save_directory: str, *args: Any, is_main_process: bool = True, **kwargs: Any) -> None:
    """`PeftModel.save_pretrained`, followed by the conversion of the two files."""
    import torch
    from safetensors.torch import load_file, save_file

    type(self).save_pretrained(self, save_directory, *args, is_main_process=is_main_process, **kwargs)
    if not is_main_process:
        return
    folder, first = Path(save_directory), vars(self)["_tunekit_first"]
    tensors = load_file(folder / WEIGHTS)
    for name, start in first.items():
        start = start.to(tensors[name].dtype)
        dim = _half(name) or 0
        tensors[name] = torch.cat([tensors[name], -start if dim == 1 else start], dim).contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    write_json(folder / CONFIG, _doubled(config))


def _doubled(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration at twice the rank with the same scaling, alpha / r or alpha / sqrt(r)."""
    grow = 2**0.5 if config.get("use_rslora") else 2
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    return {
        **config,
        "init_lora_weights": True,
        "r": 2 * config["r"],
        "lora_alpha": grow * config["lora_alpha"],
        "rank_pattern": {k: 2 * v for k, v in ranks.items()},
        "alpha_pattern": {k: grow * v for k, v in alphas.items()},
    }


def _load_half(self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
    """`PeftModel.load_adapter`; from a folder of twice the rank it takes the half that was trained."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    folder = Path(model_id)
    first = vars(self)["_tunekit_first"]
    have = shapes(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else {}
    doubled = all(n in have and have[n][_half(n) or 0] == 2 * t.shape[_half(n) or 0] for n, t in first.items())
    if adapter_name not in self.peft_config or not doubled:
        return type(self).load_adapter(self, model_id, adapter_name, *args, **kwargs)
    tensors = load_file(folder / WEIGHTS)
    for name, start in first.items():
        dim = _half(name) or 0
        tensors[name] = tensors[name].narrow(dim, 0, start.shape[dim]).contiguous()
    result: Any = set_peft_model_state_dict(self, tensors, adapter_name)
    result.missing_keys.clear()
    if not kwargs.get("is_trainable", False):
        self.eval()
    return result
