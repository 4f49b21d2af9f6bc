"""PEFT's published runs: methods as PEFT's own code has them, where ours are built another way."""

from __future__ import annotations

from typing import Any

from tunekit.contracts import Method
from tunekit.discovery import find


def as_peft(method: Method) -> Method:
    """The method as PEFT's benchmark runs it: its soft prompts go into the key-value cache and the input of PEFT's model.

    Example:
        >>> as_peft(find("method", "prompt-tuning")(num_virtual_tokens=7)).config["peft_type"]
        'PROMPT_TUNING'
    """
    settings: dict[str, Any] = {}
    if method.slug not in _TYPES:
        return method
    values = method.to_dict()
    for ours, theirs in _TYPES[method.slug][1].items():
        if values.get(ours) is not None:
            settings[theirs] = values[ours].upper() if ours == "encoder" else values[ours]
    return find("method", "peft")(config={"peft_type": _TYPES[method.slug][0], **settings})


_COUNT = {"num_virtual_tokens": "num_virtual_tokens"}
_TYPES: dict[str, tuple[str, dict[str, str]]] = {
    "prompt-tuning": ("PROMPT_TUNING", _COUNT),
    "p-tuning": (
        "P_TUNING",
        {
            **_COUNT,
            "encoder": "encoder_reparameterization_type",
            "encoder_hidden_size": "encoder_hidden_size",
            "encoder_num_layers": "encoder_num_layers",
            "encoder_dropout": "encoder_dropout",
        },
    ),
    "prefix-tuning": (
        "PREFIX_TUNING",
        {**_COUNT, "prefix_projection": "prefix_projection", "encoder_hidden_size": "encoder_hidden_size"},
    ),
}
"""Our slug to PEFT's type, and our settings to its."""
