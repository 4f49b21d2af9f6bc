"""AdapterHub's folders of fusions: what `save_adapter_setup` of a `Fuse(...)` writes, read and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import adapterhub, delta_format
from tunekit.adapterhub_files import VERSION, about, copy_into, read_json, read_tensors
from tunekit.adapterhub_head import head, write_head
from tunekit.errors import UnreadableError, UnsupportedError, raise_all
from tunekit.files import write_json
from tunekit.finding import Finding, error
from tunekit.snapshot import prepared
from tunekit.structure import task_model
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

SETUP, CONFIG = "adapter_setup.json", "adapter_fusion_config.json"
WEIGHTS = ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")

_LAYER = re.compile(
    r"^(?P<path>.+)\.adapter_fusion_layer\.(?P<name>.+)\.(?P<tail>(?:query|key|value)\.(?:weight|bias))$"
)
_DYNAMIC: Mapping[str, Any] = {
    "key": True, "query": True, "value": True, "query_before_ln": False, "regularization": True, "residual_before": False,
    "temperature": False, "value_before_softmax": True, "value_initialized": True, "dropout_prob": None,
}  # fmt: skip
_ONLY = ("key", "query", "query_before_ln", "residual_before", "temperature")
"""The settings that must be those of `_DYNAMIC`; of the others a value matrix may be missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What the files of a fusion say."""

    names: tuple[str, ...]
    """Its adapters, which lie in folders of these names."""
    folder: Path
    """Where the fusion's own files are."""
    has_value: bool


def holds(folder: Path) -> bool:
    """Whether a folder is AdapterHub's, with a fusion in it."""
    return (folder / SETUP).is_file()


def read_setup(folder: Path) -> Setup:
    """What `adapter_setup.json` and the fusion's configuration say.

    Raises:
        UnreadableError: `adapter-corrupted`.
        UnsupportedError: `adapterhub-setup` for anything but a fusion of plain adapters, `adapterhub-setting`.
    """
    setup = read_json(folder / SETUP).get("adapter_setup")
    if not isinstance(setup, dict) or not isinstance(setup.get("children"), list):
        raise UnreadableError(delta_format.corrupted(folder / SETUP, "it has no `adapter_setup`"))
    children = [c.get("children") for c in setup["children"] if isinstance(c, dict) and c.get("type") == "single"]
    names = tuple(str(c[0]) for c in children if isinstance(c, list) and len(c) == 1)
    if setup.get("type") != "Fuse" or len(names) != len(setup["children"]):
        seen, why = f"{folder / SETUP}", f"it is a {setup.get('type')} and no fusion of plain adapters"
        raise UnsupportedError(
            error("adapterhub-setup", seen, why, "load its adapters one by one with `tunekit.add_adapter`")
        )
    if unsafe := [n for n in names if Path(n).name != n or n in ("..", ".")]:
        raise UnreadableError(delta_format.corrupted(folder / SETUP, f"no adapter is called {unsafe[0]!r}"))
    own = folder / ",".join(names)
    config = read_json(own / CONFIG).get("config")
    if not isinstance(config, dict):
        raise UnreadableError(delta_format.corrupted(own / CONFIG, "`config` is no object"))
    raise_all(_setting_faults(own, config), UnsupportedError)
    return Setup(names=names, folder=own, has_value=bool(config.get("value")))


def _setting_faults(folder: Path, config: Mapping[str, Any]) -> list[Finding]:
    fix = "train the fusion again with `adapter-fusion`"
    return [
        error("adapterhub-setting", f"{folder / CONFIG} with `{n}: {config[n]}`", "there is no such setting here", fix)
        for n in _ONLY
        if n in config and config[n] != _DYNAMIC[n]
    ]


def load_into(model: nn.Module, folder: Path, task: Task) -> None:
    """Fills a fusion, and the head, on a model that has the adapters already.

    Raises:
        UnreadableError: `adapter-corrupted`, `adapter-pickled`.
        UnsupportedError: `adapter-wrong-base`, `adapterhub-model`.
    """
    import torch

    from tunekit.bottleneck import CHILD, sites
    from tunekit.fusion import learnt_by_fusion

    saved = read_setup(folder)
    if any(c.config.is_parallel or c.config.ln_after for site in sites(model) for c in site.chosen()):
        why = "there the stream is added twice, or the adapter's own norm left out"
        fix = "train the fusion again with `adapter-fusion`"
        raise UnsupportedError(
            error("adapterhub-setting", f"{folder}: a fusion of parallel adapters or with `ln_after`", why, fix)
        )
    values = {}
    for key, value in read_tensors(saved.folder, WEIGHTS).items():
        match = _LAYER.match(key)
        at = adapterhub.site_of(model, match["path"]) if match else None
        if match is None or at is None:
            raise UnsupportedError(delta_format.wrong_base(folder, f"{key} is not in the model"))
        # A bias of the key adds the same to every adapter's score.
        if match["tail"] != "key.bias":
            name = {"value.weight": "value_change"}.get(match["tail"], match["tail"].replace(".", "_"))
            change = value - torch.eye(*value.shape) if name == "value_change" and value.ndim == 2 else value
            values[f"{at.block}.{CHILD}.{at.location}.fusion.{name}"] = change
    own = dict(model.named_parameters())
    wanted = {n: tuple(own[n].shape) for n in learnt_by_fusion(model)}
    delta_format.raise_mismatch(folder, {n: tuple(v.shape) for n, v in values.items()}, wanted)
    copy_into(model, values | head(model, folder, task))


def write(model: nn.Module, folder: str | Path) -> Path:
    """Writes a fusion with its adapters and the task's head so that `adapters` loads them with `load_adapter_setup`.

    Args:
        model: A model with an `AdapterFusion` on it.
        folder: Where to; made where it does not exist.

    Raises:
        UnsupportedError: `adapterhub-model`, and `adapter-several` where no fusion is on the model.
    """
    import torch

    from tunekit.bottleneck import sites

    fused, folder, top = [s for s in sites(model) if s.fusion is not None], Path(folder), task_model(model)
    if not fused:
        seen, fix = f"a {type(top).__name__} without a fusion", "write its adapters with `tunekit.adapterhub.write`"
        raise UnsupportedError(error("adapter-several", seen, "there is none to write", fix))
    names = fused[0].active
    tensors: dict[str, torch.Tensor] = {}
    for site in fused:
        path = f"{adapterhub.owner(model, site.at)}.adapter_fusion_layer.{','.join(names)}"
        tensors |= {f"{path}.{tail}": value for tail, value in _theirs(site.fusion)}
    for name in names:
        adapterhub.write(model, folder / name, name)
    own = folder / ",".join(names)
    own.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, own / WEIGHTS[-1])
    has_value = any(key.endswith("value.weight") for key in tensors)
    config = {**_DYNAMIC, "value": has_value, "regularization": has_value, "value_initialized": has_value}
    write_json(own / CONFIG, {**about(top), "name": ",".join(names), "adapter_names": list(names), "config": config})
    what = prepared(model)
    has_head = what is not None and what.task.has_head
    if what is not None and has_head:
        write_head(model, folder, what.task)
    singles = [{"type": "single", "children": [name]} for name in names]
    setup = {"type": "Fuse", "children": singles}
    write_json(folder / SETUP, {"adapter_setup": setup, "head_setup": has_head or None, "version": VERSION})
    return folder


def _theirs(fusion: Any) -> list[tuple[str, torch.Tensor]]:
    """The parameters of a fusion under the library's names."""
    import torch

    own = {n: p.detach().cpu().float() for n, p in fusion.named_parameters()}
    found = [
        ("query.weight", own["query_weight"]),
        ("query.bias", own["query_bias"]),
        ("key.weight", own["key_weight"]),
    ]
    found.append(("key.bias", torch.zeros_like(own["query_bias"])))
    if "value_change" in own:
        found.append(("value.weight", own["value_change"] + torch.eye(len(own["value_change"]))))
    return found
