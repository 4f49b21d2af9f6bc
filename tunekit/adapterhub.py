"""AdapterHub's folders: bottleneck adapters with their heads as the library `adapters` saves them, read and written.

The library names a parameter by the module that holds the adapter and not by ours; `site_of` and `owner` go from one
to the other by where the adapter sits.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import delta_format
from tunekit.adapterhub_files import VERSION, about, copy_into, read_json, read_tensors
from tunekit.adapterhub_head import head, write_head
from tunekit.bottleneck_config import BottleneckConfig
from tunekit.errors import UnreadableError, UnsupportedError, raise_all
from tunekit.fields import hints
from tunekit.files import write_json
from tunekit.finding import Finding, error
from tunekit.snapshot import prepared
from tunekit.structure import base_name, task_model
from tunekit.sublayers import Sublayer
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
MODEL_TYPES = (
    "albert", "bart", "bert", "deberta-v2", "distilbert", "electra", "gpt2", "llama", "mbart", "mistral",
    "roberta", "t5", "xlm-roberta",
)  # fmt: skip
"""The architectures on which the library's logits and ours were compared."""

_ADAPTER = re.compile(r"^(?P<path>.+?)\.adapters\.(?P<name>[^.]+)\.(?P<tail>.+)$")
_TAILS = {"adapter_up": "up", "adapter_norm_before": "norm_before", "adapter_norm_after": "norm_after"}
_OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
"""What activations were called by adapter-transformers, whose files say no version."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "original_ln_after": (True,), "use_gating": (False, None), "inv_adapter": (None,), "phm_layer": (False, None),
    "stochastic_depth": (0.0, None), "adapter_residual_before_ln": (False, None), "invertible_adapter": (None,),
}  # fmt: skip
"""Settings that have no counterpart here, with the values that mean they are not used."""
_IGNORED = re.compile(
    r"phm_.*|.*_phm|.*_phm_rule|factorized_.*|shared_.*|learn_phm|hypercomplex_.*|init_weights_seed|architecture|"
    r"inv_adapter_reduction_factor"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What the configuration of a folder says."""

    name: str
    config: BottleneckConfig
    model_type: str
    hidden_size: int | None


def holds(folder: Path) -> bool:
    """Whether a folder is AdapterHub's; PEFT names its configuration alike."""
    try:
        data = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "peft_type" not in data and "config" in data and "model_type" in data


# ---------------------------------------------------------------------------------------------- reading
def read_config(folder: Path) -> Saved:
    """What `adapter_config.json` says, in our terms.

    Raises:
        UnreadableError: `adapter-corrupted`.
        UnsupportedError: `adapterhub-setting` for an adapter of another kind, naming the setting.
    """
    data = read_json(folder / CONFIG)
    given = data.get("config")
    if not isinstance(given, dict):
        raise UnreadableError(delta_format.corrupted(folder / CONFIG, "`config` is no object"))
    if (kind := given.get("architecture")) is not None:
        raise UnsupportedError(_unsupported(folder, f"`architecture: {kind}`", "it is no bottleneck adapter"))
    raise_all(_setting_faults(folder, given), UnsupportedError)
    values = {name: given[name] for name in hints(BottleneckConfig) if given.get(name) is not None}
    if "version" not in data:
        values["non_linearity"] = _OLD_ACTIVATIONS.get(values.get("non_linearity", ""), values.get("non_linearity"))
    values |= {"leave_out": tuple(values.get("leave_out", ()))}
    if values.get("is_parallel") or not values.get("original_ln_before"):
        values |= {"residual_before_ln": True, "original_ln_before": False}
    factor = values.get("reduction_factor")
    values["reduction_factor"] = {k: float(v) for k, v in factor.items()} if isinstance(factor, dict) else factor
    try:
        config = BottleneckConfig(**values)
        raise_all(config.faults("adapter_config.json"))
    except (TypeError, AttributeError, ValueError) as e:
        raise UnreadableError(delta_format.corrupted(folder / CONFIG, e)) from None
    return Saved(
        name=str(data.get("name")),
        config=config,
        model_type=str(data["model_type"]),
        hidden_size=data.get("hidden_size"),
    )


def _setting_faults(folder: Path, given: Mapping[str, Any]) -> list[Finding]:
    known = hints(BottleneckConfig)
    faults = []
    for name, value in given.items():
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            if name == "adapter_residual_before_ln" and not given.get("ln_after"):
                continue
            faults.append(_unsupported(folder, f"`{name}: {value}`", "there is no such setting here"))
        elif name not in known and name not in _NEUTRAL and not _IGNORED.fullmatch(name) and value is not None:
            faults.append(_unsupported(folder, f"`{name}: {value}`", "no such setting is known"))
    return faults


def _unsupported(folder: Path, seen: str, why: str) -> Finding:
    return error(
        "adapterhub-setting", f"{folder / CONFIG} with {seen}", why, "train it again with `bottleneck-adapter`"
    )


def load_into(model: nn.Module, folder: Path, task: Task, name: str, with_head: bool = True) -> None:
    """Fills an adapter that lies on the model, and the head where the saved one is for the same task.

    Raises:
        UnreadableError: `adapter-corrupted`, `adapter-pickled`.
        UnsupportedError: `adapter-wrong-base`; nothing is copied then.
    """
    saved = read_config(folder)
    check_base(model, folder, saved)
    values = _ours(model, folder, read_tensors(folder, WEIGHTS), name)
    own = dict(model.named_parameters())
    from tunekit.bottleneck import parameters_of

    wanted = {n: tuple(own[n].shape) for n in parameters_of(model, name)}
    delta_format.raise_mismatch(folder, {n: tuple(v.shape) for n, v in values.items()}, wanted)
    if with_head:
        values |= head(model, folder, task)
    copy_into(model, values)


def check_base(model: nn.Module, folder: Path, saved: Saved) -> None:
    """Refuses a base of another type or width.

    Raises:
        UnsupportedError: `adapter-wrong-base`, `adapterhub-model`.
    """
    config = task_model(model).config
    have, width = config.model_type, getattr(config, "hidden_size", None)
    if saved.model_type != have:
        raise UnsupportedError(
            delta_format.wrong_base(folder, f"it belongs to a `{saved.model_type}`, this is a `{have}`")
        )
    if saved.hidden_size and width and saved.hidden_size != width:
        raise UnsupportedError(
            delta_format.wrong_base(folder, f"it has {saved.hidden_size} features, the model {width}")
        )
    raise_all(_model_faults(have, saved.config), UnsupportedError)


def _model_faults(model_type: str, config: BottleneckConfig) -> list[Finding]:
    """Where the library's adapters of an architecture are other functions than ours, or not known to be the same."""
    fix = "save it with `save_pretrained`, and attach that with `tunekit.load`"
    if model_type not in MODEL_TYPES:
        why = f"`{VERSION}` is not known to give the same logits on it"
        return [error("adapterhub-model", f"a `{model_type}` model", why, fix)]
    if model_type == "albert" and config.mh_adapter:
        # `AlbertSdpaAttentionWithAdapters.forward` passes the stream and the attention's output the wrong way round.
        why = f"in `{VERSION}` that one reads what the attention reads, not what it returns"
        return [
            error(
                "adapterhub-model", "an adapter after the attention of ALBERT", why, "place it after the feed-forward"
            )
        ]
    return []


def _ours(model: nn.Module, folder: Path, tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The tensors of an adapter under the names that they have on our model."""
    from tunekit.bottleneck import CHILD

    found = {}
    linear = "adapter_down.1" if any(".adapter_down.1." in key for key in tensors) else "adapter_down.0"
    for key, value in tensors.items():
        match = _ADAPTER.match(key)
        at = site_of(model, match["path"]) if match else None
        if match is None or at is None:
            raise UnsupportedError(delta_format.wrong_base(folder, f"{key} is not in the model"))
        tail = _tail(match["tail"], linear)
        if tail is not None:
            found[f"{at.block}.{CHILD}.{at.location}.adapters.{name}.{tail}"] = value
    return found


def _tail(tail: str, linear: str) -> str | None:
    """Our name of a parameter within an adapter; None for a norm, which the library saves twice."""
    head, _, last = tail.rpartition(".")
    if head.startswith("adapter_down."):
        return f"down.{last}" if head == linear else None
    return f"{_TAILS[head]}.{last}" if head in _TAILS else tail


def site_of(model: nn.Module, path: str) -> Sublayer | None:
    """The place that AdapterHub's dotted path of an adapter stands for."""
    from tunekit.bottleneck import sites

    prefix = f"{base_name(model)}." if base_name(model) else ""
    for site in sites(model):
        block = site.at.block.removeprefix(prefix)
        match = re.search(rf"(?:^|\.){re.escape(block)}(?:\.(?P<rest>.*))?$", path)
        if match and site.at.location == _location(model, site.at.block, match["rest"] or ""):
            return site.at
    return None


def _location(model: nn.Module, block: str, rest: str) -> str:
    """Where in a layer: by the module that the path goes to, otherwise by the library's own names."""
    from tunekit.bottleneck import sites

    here = [s.at for s in sites(model) if s.at.block == block]
    inside = [at for at in here if rest and at.exit.startswith(f"{block}.{rest}.")]
    if len(inside) == 1:
        return inside[0].location
    if "cross" in rest:
        return "cross_attention"
    return "attention" if "attention" in rest else "feed_forward"


# ---------------------------------------------------------------------------------------------- writing
def write(model: nn.Module, folder: str | Path, name: str = "default") -> Path:
    """Writes an adapter and the task's head so that AdapterHub's `adapters` loads them with `load_adapter`.

    Args:
        model: A model with bottleneck adapters on it.
        folder: Where to; made where it does not exist.
        name: The adapter's name here, and the one it will have there.

    Raises:
        MissingError: `adapter-unknown`.
        UnsupportedError: `adapterhub-model` for an architecture that the library has no adapters for.

    Example:
        >>> import tempfile, tunekit
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
        >>> method = tunekit.methods.BottleneckAdapter(variant="houlsby")
        >>> model = tunekit.prepare(BertForSequenceClassification(config), method, "sequence-classification")
        >>> sorted(p.name for p in write(model, tempfile.mkdtemp()).iterdir())
        ['adapter_config.json', 'head_config.json', 'pytorch_adapter.bin', 'pytorch_model_head.bin']
    """
    import torch

    from tunekit.bottleneck import config_of, sites

    top, folder = task_model(model), Path(folder)
    config = config_of(model, name)
    raise_all(_model_faults(top.config.model_type, config), UnsupportedError)
    tensors: dict[str, torch.Tensor] = {}
    for site in sites(model):
        if name in site.adapters:
            path = f"{owner(model, site.at)}.adapters.{name}"
            tensors |= {f"{path}.{tail}": value for tail, value in _theirs(site.adapters[name])}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / WEIGHTS[-1])
    if config.residual_before_ln == "post_add" and all(site.norm is None for site in sites(model)):
        # Without a norm in between the two are the same, and the library knows one of them.
        config = dataclasses.replace(config, residual_before_ln=False)
    write_json(folder / CONFIG, {**about(top), "name": name, "config": _config_values(config)})
    what = prepared(model)
    if what is not None and what.task.has_head:
        write_head(model, folder, what.task)
    return folder


def _config_values(config: BottleneckConfig) -> dict[str, Any]:
    off = {"original_ln_after": True, "adapter_residual_before_ln": False, "use_gating": False, "inv_adapter": None,
           "inv_adapter_reduction_factor": None, "phm_layer": False, "stochastic_depth": 0.0}  # fmt: skip
    return {**config.to_dict(), **off}


def _theirs(adapter: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of an adapter under the library's names."""
    first = 1 if adapter.norm_before is not None else 0
    for name, p in adapter.named_parameters():
        value = p.detach().cpu().contiguous()
        head, _, last = name.partition(".")
        if head == "down":
            yield f"adapter_down.{first}.{last}", value
        elif head == "norm_before":
            yield f"adapter_norm_before.{last}", value
            yield f"adapter_down.0.{last}", value
        else:
            yield {"up": f"adapter_up.{last}", "norm_after": f"adapter_norm_after.{last}"}.get(head, name), value


def owner(model: nn.Module, at: Sublayer) -> str:
    """The dotted name of the module that holds the adapters of a place in the library."""
    from tunekit.structure import is_linear

    ends = [at.exit.split("."), (at.norm or at.entry).split(".")]
    shared = []
    for a, b in zip(*ends, strict=False):
        if a != b:
            break
        shared.append(a)
    owner = ".".join(shared)
    linears = sum(is_linear(m) for m in model.get_submodule(owner).children())
    named = {
        "attention": "attention_adapters",
        "cross_attention": "cross_attention_adapters",
        "feed_forward": "output_adapters",
    }
    return f"{owner}.{named[at.location]}" if owner == at.block or linears > 1 else owner
