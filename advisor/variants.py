"""What people call a method under certain settings, such as `dora` or `qlora`, and how a plan writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tunekit.contracts import Method
from tunekit.discovery import find


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A method with settings, and the plan's knobs that belong to it."""

    method: str
    """Slug."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    quantization: str | None = None
    """What the plan says of its base."""

    def make(self) -> Method:
        """The method so set."""
        return find("method", self.method)(**self.settings)


VARIANTS: Mapping[str, Variant] = MappingProxyType({
    "dora": Variant(method="lora", settings={"use_dora": True}),
    "houlsby": Variant(method="bottleneck-adapter", settings={"variant": "houlsby"}),
    "lora-plus": Variant(method="lora", settings={"loraplus_lr_ratio": 16.0}),
    "olora": Variant(method="lora", settings={"lora_alpha": 16, "init_lora_weights": "olora"}),
    "parallel-adapter": Variant(method="bottleneck-adapter", settings={"variant": "parallel"}),
    "pfeiffer": Variant(method="bottleneck-adapter", settings={"variant": "pfeiffer"}),
    "pissa": Variant(method="lora", settings={"lora_alpha": 16, "init_lora_weights": "pissa_niter_16"}),
    "qlora": Variant(method="lora", quantization="nf4"),
    "rslora": Variant(method="lora", settings={"r": 64, "lora_alpha": 64, "use_rslora": True}),
})  # fmt: skip
"""Names that may be asked for beside the methods' slugs; each is compared only where it is asked for."""
