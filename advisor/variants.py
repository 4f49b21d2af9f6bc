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
    text: str
    """What it is, in a sentence."""
    reference: str
    """Authors, title, year."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    quantization: str | None = None
    """What the plan says of its base."""

    def make(self) -> Method:
        """The method so set."""
        return find("method", self.method)(**self.settings)


VARIANTS: Mapping[str, Variant] = MappingProxyType({
    "dora": Variant(
        method="lora", settings={"use_dora": True},
        text="LoRA that learns how long each column of a weight is apart from where it points; a quarter slower than LoRA.",
        reference="Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, 2024",
    ),
    "houlsby": Variant(
        method="bottleneck-adapter", settings={"variant": "houlsby"},
        text="Two small bottleneck networks a layer, after the attention and after the feed-forward part.",
        reference="Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019",
    ),
    "lora-plus": Variant(
        method="lora", settings={"loraplus_lr_ratio": 16.0},
        text="LoRA whose second matrix learns sixteen times as fast as its first.",
        reference="Hayou et al., LoRA+: Efficient Low Rank Adaptation of Large Models, 2024",
    ),
    "olora": Variant(
        method="lora", settings={"lora_alpha": 16, "init_lora_weights": "olora"},
        text="LoRA that starts from orthonormal directions of the weights instead of from nothing.",
        reference="Buyukakyuz, OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models, 2024",
    ),
    "parallel-adapter": Variant(
        method="bottleneck-adapter", settings={"variant": "parallel"},
        text="One small bottleneck network a layer, beside the feed-forward part instead of after it.",
        reference="He et al., Towards a Unified View of Parameter-Efficient Transfer Learning, 2022",
    ),
    "pfeiffer": Variant(
        method="bottleneck-adapter", settings={"variant": "pfeiffer"},
        text="One small bottleneck network a layer, after the feed-forward part: half of Houlsby's.",
        reference="Pfeiffer et al., AdapterFusion: Non-Destructive Task Composition for Transfer Learning, 2021",
    ),
    "pissa": Variant(
        method="lora", settings={"lora_alpha": 16, "init_lora_weights": "pissa_niter_16"},
        text="LoRA that starts from the largest singular directions of the weights and leaves the rest frozen.",
        reference="Meng et al., PiSSA: Principal Singular Values and Singular Vectors Adaptation, 2024",
    ),
    "qlora": Variant(
        method="lora", quantization="nf4",
        text="LoRA on a base whose weights are kept in four bits and computed in sixteen.",
        reference="Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023",
    ),
    "rslora": Variant(
        method="lora", settings={"r": 64, "lora_alpha": 64, "use_rslora": True},
        text="LoRA whose change is divided by the root of the rank, so that a high rank learns as strongly as a low one.",
        reference="Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023",
    ),
})  # fmt: skip
"""Names that may be asked for beside the methods' slugs; each is compared only where it is asked for."""
