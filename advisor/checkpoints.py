"""The catalogue of popular checkpoints: a configuration by hub id, where the hub cannot be asked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def checkpoints() -> Mapping[str, Mapping[str, Any]]:
    """Every hub id of the catalogue with its entry; ids that share a configuration share the entry.

    Example:
        >>> len(checkpoints()) > 100, checkpoints()["gpt2"]["parameters"]
        (True, 124439808)
    """
    from importlib.resources import files

    import yaml

    text = files("tunekit.advisor.catalogue").joinpath("models.yaml").read_text("utf-8")
    table = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {name: entry for first, entry in table.items() for name in (first, *entry.get("same", ()))}


def configuration(name: str) -> Any:
    """The transformers configuration of a hub id, or None where the catalogue does not hold it.

    Example:
        >>> configuration("meta-llama/Llama-3.1-8B").num_key_value_heads, configuration("nobody/nothing")
        (8, None)
    """
    entry = checkpoints().get(name)
    if entry is None:
        return None
    from transformers import AutoConfig

    values = dict(entry["config"])
    made = AutoConfig.for_model(values.pop("model_type"), **values)
    made.name_or_path = name
    return made


def follows_instructions(name: str) -> bool:
    """Whether the catalogue says that this id was tuned to follow instructions."""
    return name in checkpoints().get(name, {}).get("instruct", ())
