"""AdapterHub's folders: bottleneck adapters with their heads as the library `adapters` saves them, read and written.

The library names a parameter by the module that holds the adapter and not by ours; `_site_of` and `_owner` go from one
to the other by where the adapter sits.
"""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import delta_format
from tunekit.bottleneck_config import BottleneckConfig
from tunekit.errors import UnreadableError, UnsupportedError, raise_all
from tunekit.fields import hints
from tunekit.files import write_json
from tunekit.finding import Finding, error
from tunekit.snapshot import prepared
from tunekit.structure import base_name, head_parameters, task_model
from tunekit.sublayers import Sublayer
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

CONFIG, HEAD_CONFIG = "adapter_config.json", "head_config.json"
WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")
VERSION = "adapters.1.3.0"
"""The library whose format is written."""

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
_HEADS = {"classification": "sequence-classification", "multiple_choice": "multiple-choice", "tagging": "token-classification",
          "question_answering": "question-answering"}  # fmt: skip


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
    data = _json(folder / CONFIG)
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


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UnreadableError(delta_format.corrupted(path, e)) from None
    if not isinstance(data, dict):
        raise UnreadableError(delta_format.corrupted(path, "it is no JSON object"))
    return data


def read_tensors(folder: Path, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors of the first of these files that is there; a pickle is read as tensors and nothing else.

    Raises:
        UnreadableError: `adapter-corrupted`, `adapter-pickled` where a pickle holds anything but tensors.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = next((folder / n for n in names if (folder / n).is_file()), folder / names[-1])
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # Of a pickle that torch did not write it warns before it refuses.
            warnings.simplefilter("ignore")
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        if "weights_only" in str(e).lower() or "unsupported" in str(e).lower():
            raise UnreadableError(_pickled(path)) from None
        raise UnreadableError(delta_format.corrupted(path, e)) from None
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as e:
        raise UnreadableError(delta_format.corrupted(path, e)) from None
    if not isinstance(values, dict) or not all(isinstance(v, torch.Tensor) for v in values.values()):
        raise UnreadableError(_pickled(path))
    return {str(k): v for k, v in values.items()}


def _pickled(path: Path) -> Finding:
    return error(
        "adapter-pickled", f"{path}", "it holds more than tensors, and reading that would run code from it",
        "save it again with `use_safetensors=True`",
    )  # fmt: skip


def load_into(model: nn.Module, folder: Path, task: Task, name: str) -> None:
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
    values |= _head(model, folder, task)
    _copy(model, values)


def _copy(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    import torch

    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


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
        at = _site_of(model, match["path"]) if match else None
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


def _site_of(model: nn.Module, path: str) -> Sublayer | None:
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


# ---------------------------------------------------------------------------------------------- heads
def _head(model: nn.Module, folder: Path, task: Task) -> dict[str, torch.Tensor]:
    """The saved head under our names; empty where there is none, or one for another task.

    Raises:
        UnsupportedError: `adapter-wrong-base` where it is for this task and does not fit.
    """
    if not task.has_head or not any((folder / n).is_file() for n in HEAD_WEIGHTS):
        return {}
    data = _json(folder / HEAD_CONFIG) if (folder / HEAD_CONFIG).is_file() else {}
    given = data.get("config")
    tensors = read_tensors(folder, HEAD_WEIGHTS)
    wanted = {n: tuple(p.shape) for n, p in model.named_parameters() if n in _head_names(model, task)}
    if not isinstance(given, dict):
        if data.get("model_class") != type(task_model(model)).__name__:
            return {}
        outside = {n: shape for n, shape in wanted.items() if n in tensors or not n.startswith(f"{base_name(model)}.")}
        delta_format.raise_mismatch(folder, {n: tuple(v.shape) for n, v in tensors.items()}, outside)
        return tensors
    if _HEADS.get(str(given.get("head_type"))) != task.name:
        return {}
    return _flexible(folder, model, given, tensors, wanted)


def _head_names(model: nn.Module, task: Task) -> frozenset[str]:
    return head_parameters(model, task)


def _flexible(
    folder: Path,
    model: nn.Module,
    given: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    wanted: Mapping[str, Any],
) -> dict[str, torch.Tensor]:
    """The head of an `...AdapterModel`, whose layers are numbered, where ours has the same layers."""
    pairs = sorted(tensors.items(), key=lambda kv: [int(x) if x.isdecimal() else 0 for x in kv[0].split(".")])
    theirs = [v for _, v in pairs]
    names = list(wanted)
    if given.get("use_pooler") or len(theirs) < len(names):
        names = names[len(names) - len(theirs) :]
    order = sorted(theirs, key=lambda v: -v.ndim)
    fits = len(names) == len(theirs) and sorted(tuple(v.shape) for v in order) == sorted(wanted[n] for n in names)
    if fits and len(names) > 2 and not _same_activation(model, given):
        fits = False
    if not fits:
        raise UnsupportedError(
            delta_format.wrong_base(
                folder,
                "the layers of its head are not those of the model's; remove the head's files to load the adapter alone",
            )
        )
    by_layer: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in pairs:
        layer, _, kind = key.rpartition(".")
        by_layer.setdefault(layer, {})[kind] = value
    ours: dict[str, list[str]] = {}
    for name in names:
        ours.setdefault(name.rpartition(".")[0], []).append(name)
    result = {}
    for (_, values), (_, own) in zip(by_layer.items(), ours.items(), strict=True):
        for name in own:
            result[name] = values[name.rpartition(".")[2]]
    delta_format.raise_mismatch(folder, {n: tuple(v.shape) for n, v in result.items()}, {n: wanted[n] for n in names})
    return result


def _same_activation(model: nn.Module, given: Mapping[str, Any]) -> bool:
    """Whether the activation between the two layers of a head is the model's, read off its own code."""
    import inspect

    name = str(given.get("activation_function"))
    top = task_model(model)
    modules = [
        m
        for n, m in top.named_modules()
        if "pooler" in n.lower() or n in ("classifier", "classification_head", "score")
    ]
    code = "".join(inspect.getsource(type(m)) for m in [*modules, top] if "transformers" in type(m).__module__)
    return name.lower() in code.lower()


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
    tensors = {}
    for site in sites(model):
        if name in site.adapters:
            path = f"{_owner(model, site.at)}.adapters.{name}"
            tensors |= {f"{path}.{tail}": value for tail, value in _theirs(site.adapters[name])}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / WEIGHTS[-1])
    if config.residual_before_ln == "post_add" and all(site.norm is None for site in sites(model)):
        # Without a norm in between the two are the same, and the library knows one of them.
        config = dataclasses.replace(config, residual_before_ln=False)
    write_json(folder / CONFIG, {**_about(top), "name": name, "config": _config_values(config)})
    what = prepared(model)
    if what is not None and what.task.has_head:
        own = dict(model.named_parameters())
        names = [n for n in own if n in head_parameters(model, what.task)]
        torch.save({n: own[n].detach().cpu().contiguous() for n in names}, folder / HEAD_WEIGHTS[-1])
        head = {
            "config": None,
            "name": None,
            "num_labels": top.config.num_labels,
            "label2id": dict(top.config.label2id),
        }
        write_json(folder / HEAD_CONFIG, {**_about(top), **head})
    return folder


def _about(top: Any) -> dict[str, Any]:
    return {
        "model_type": top.config.model_type,
        "hidden_size": getattr(top.config, "hidden_size", None),
        "model_name": getattr(top, "name_or_path", "") or None,
        "model_class": type(top).__name__,
        "version": VERSION,
    }


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


def _owner(model: nn.Module, at: Sublayer) -> str:
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
