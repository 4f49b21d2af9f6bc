"""The settings of one bottleneck adapter with nothing left open, under the names that AdapterHub's `adapters` gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunekit.errors import raise_all
from tunekit.fields import check_types, hints, to_plain
from tunekit.finding import Finding, error

Scaling = float | Literal["learned", "channel"]
Initialisation = Literal["bert", "houlsby", "mam_adapter"]
Residual = bool | Literal["post_add"]

NON_LINEARITIES = ("relu", "gelu", "gelu_new", "swish", "silu", "tanh", "sigmoid", "leakyrelu", "mish", "relu6")
"""The names that both transformers and `adapters` know, and that have a slope at zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BottleneckConfig:
    """Where an adapter sits in each layer, what it reads, and its own layers.

    Example:
        >>> config = BottleneckConfig(mh_adapter=False, output_adapter=True, reduction_factor={"1": 4.0, "default": 16.0},
        ...                           non_linearity="relu", leave_out=(0,))
        >>> [config.units(32, layer) for layer in range(3)]
        [None, 8, 2]
    """

    mh_adapter: bool
    """After the self-attention."""
    output_adapter: bool
    """After the feed-forward."""
    cross_adapter: bool = False
    """After the attention of a decoder to its encoder."""
    reduction_factor: float | Mapping[str, float]
    """The stream's width over that of the bottleneck; by the number of the layer, with a `default`."""
    non_linearity: str
    is_parallel: bool = False
    """Whether it reads what the sublayer reads, rather than what it returns."""
    original_ln_before: bool = False
    """Whether it reads the sum after the layer's own residual connection and norm."""
    residual_before_ln: Residual = True
    """What its output is added to: the sublayer's output (True), the sum (`post_add`), or what it reads (False)."""
    ln_before: bool = False
    """Whether a norm of its own comes first."""
    ln_after: bool = False
    """Whether a norm of its own comes last."""
    scaling: Scaling = 1.0
    """A factor on its output; `learned`, or one for each `channel`."""
    dropout: float = 0.0
    init_weights: Initialisation = "bert"
    leave_out: tuple[int, ...] = field(default=())
    """Layers without an adapter, counted over the encoder and then the decoder."""

    def __post_init__(self) -> None:
        raise_all(check_types(self, "bottleneck"))

    def units(self, width: int, layer: int) -> int | None:
        """Width of the bottleneck in a layer; None where the layer is left out."""
        factor = self.factor(layer)
        return None if layer in self.leave_out or factor is None else max(1, int(width // factor))

    def factor(self, layer: int) -> float | None:
        """The reduction factor of a layer; None where a mapping names neither it nor a default."""
        if isinstance(self.reduction_factor, Mapping):
            return self.reduction_factor.get(str(layer), self.reduction_factor.get("default"))
        return self.reduction_factor

    def places(self, location: str) -> bool:
        """Whether there is an adapter at such a place: `attention`, `cross_attention` or `feed_forward`."""
        return {
            "attention": self.mh_adapter,
            "cross_attention": self.cross_adapter,
            "feed_forward": self.output_adapter,
        }[location]

    def to_dict(self) -> dict[str, Any]:
        """Every field as a plain value."""
        return {name: to_plain(getattr(self, name)) for name in hints(BottleneckConfig)}

    def faults(self, kind: str) -> list[Finding]:
        """Every value out of its range, for a configuration called `kind`."""
        found = []
        if not (self.mh_adapter or self.output_adapter or self.cross_adapter):
            seen = f"`{kind}` without a place"
            found.append(error("bottleneck-location", seen, "nothing would learn", "set `locations: [feed_forward]`"))
        given = self.reduction_factor
        factors = list(given.values()) if isinstance(given, Mapping) else [given]
        if not factors or any(f <= 0 for f in factors):
            seen, fix = f"`reduction_factor` of `{kind}` is {given!r}", "set 2 to 64"
            found.append(error("bottleneck-reduction", seen, "it divides the width, so it is above 0", fix))
        if isinstance(given, Mapping) and (odd := [k for k in given if k != "default" and not k.isdecimal()]):
            seen = f"`reduction_factor` of `{kind}` for {', '.join(map(repr, odd))}"
            found.append(error("bottleneck-reduction", seen, "a layer is a number, or `default`", "correct it"))
        if self.non_linearity not in NON_LINEARITIES:
            seen, fix = f"`non_linearity` of `{kind}` is {self.non_linearity!r}", f"use {', '.join(NON_LINEARITIES)}"
            found.append(error("bottleneck-activation", seen, "no such activation", fix))
        if not 0 <= self.dropout < 1:
            seen = f"`dropout` of `{kind}` is {self.dropout}"
            found.append(
                error(
                    "bottleneck-dropout", seen, "a probability of dropping is at least 0 and below 1", "set 0.0 to 0.1"
                )
            )
        if self.scaling == 0:
            seen = f"`scaling` of `{kind}` is 0"
            found.append(
                error("bottleneck-scaling", seen, "the adapter would have no effect", "set 1.0, or 4.0 for parallel")
            )
        return [*found, *self._placement_faults(kind)]

    def _placement_faults(self, kind: str) -> list[Finding]:
        if self.is_parallel and self.original_ln_before:
            why, fix = "a parallel adapter reads what comes before the sublayer", "leave `original_ln_before` out"
            return [error("bottleneck-placement", f"a parallel `{kind}` with `original_ln_before`", why, fix)]
        if self.residual_before_ln is not True and not self.original_ln_before:
            why, fix = (
                "only after the layer's norm is there a choice",
                "set `original_ln_before: true`, or leave it out",
            )
            seen = f"`residual_before_ln: {self.residual_before_ln}` of `{kind}`"
            return [error("bottleneck-placement", seen, why, fix)]
        return []
