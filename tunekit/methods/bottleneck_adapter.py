"""Bottleneck adapters: a small network after (or beside) the sublayers of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunekit import adapter_files, delta_format
from tunekit.bottleneck_config import BottleneckConfig, Initialisation, Residual, Scaling
from tunekit.contracts import Family, Method, Objective, Recipe
from tunekit.finding import Finding
from tunekit.methods import _adapters as shared
from tunekit.methods import _recipes
from tunekit.structure import head_parameters
from tunekit.sublayers import LOCATIONS, Location
from tunekit.task import Task
from tunekit.workload import ModelFacts, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

Variant = Literal["houlsby", "pfeiffer", "parallel"]
_VARIANTS: Mapping[Variant, Mapping[str, Any]] = {
    "houlsby": {"locations": ("attention", "feed_forward"), "non_linearity": "swish"},
    "pfeiffer": {"original_ln_before": True},
    "parallel": {"reduction_factor": 2.0, "scaling": 4.0, "init_weights": "mam_adapter"},
}
"""What the papers' variants, as AdapterHub has them, do otherwise than `_COMMON`."""
_COMMON: Mapping[str, Any] = {
    "locations": ("feed_forward",), "reduction_factor": 16.0, "non_linearity": "relu", "scaling": 1.0,
    "init_weights": "bert", "original_ln_before": False, "residual_before_ln": True,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class BottleneckAdapter(Method):
    """Learns a small network in every layer; the base stays as it is, so that adapters can be swapped on it.

    Settings that are None are those of the variant. An adapter of AdapterHub's `adapters` (`seq_bn`, `double_seq_bn`,
    `par_bn`) is read by `tunekit.load` and written by `tunekit.adapterhub.write`.

    Example:
        >>> BottleneckAdapter(variant="houlsby").config.mh_adapter
        True
        >>> BottleneckAdapter(reduction_factor=0)
        Traceback (most recent call last):
        ...
        tunekit.errors.InvalidError: [bottleneck-reduction] `reduction_factor` of `BottleneckAdapter` is 0.0: ...

    References:
        Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019. Pfeiffer et al., AdapterFusion, 2021. He et
        al., Towards a Unified View of Parameter-Efficient Transfer Learning, 2022.
    """

    slug: ClassVar[str] = "bottleneck-adapter"
    title: ClassVar[str] = "Bottleneck adapter"
    reference: ClassVar[str] = "Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019"
    family: ClassVar[Family] = "adapters"
    own_format: ClassVar[bool] = True

    variant: Variant = "pfeiffer"
    """`houlsby`: after the attention and after the feed-forward. `pfeiffer`: after the feed-forward and its norm, half the
    parameters for about the same score. `parallel`: beside the feed-forward, scaled (He et al.), strongest with many units. Settings below that are None are the variant's own."""
    locations: tuple[Location, ...] | None = None
    """After which sublayers: `attention`, `cross_attention` (of a decoder to its encoder), `feed_forward`."""
    reduction_factor: float | Mapping[str, float] | None = None
    """The model's width over the bottleneck's: 16 is usual, 2 to 8 for hard tasks and much data. By number of the layer,
    with a `default`, to differ among layers."""
    non_linearity: str | None = None
    """Between the two linear layers: relu, swish, gelu, ..."""
    scaling: Scaling | None = None
    """Factor on the output: 1, and 4 in He et al.'s parallel adapters; `learned`, or `channel` for one a feature."""
    dropout: float = 0.0
    """Dropout on the output; 0.1 helps little data."""
    original_ln_before: bool | None = None
    """Whether the adapter reads the sum behind the layer's own residual connection and norm, as `pfeiffer` does."""
    residual_before_ln: Residual | None = None
    """With `original_ln_before`, what the output is added to: the sublayer's output (true), the sum (`post_add`), or
    what the adapter reads (false)."""
    ln_before: bool = False
    """Whether a new norm stands in front of the bottleneck."""
    ln_after: bool = False
    """Whether a new norm stands behind it."""
    init_weights: Initialisation | None = None
    """Near identity: `bert` and `houlsby` small values, `mam_adapter` zero on the way up, so exactly the base at first."""
    leave_out: tuple[int, ...] = ()
    """Layers without an adapter, from 0, counted over the encoder and then the decoder; leaving out the lowest is cheap
    in score and fast (Rücklé et al., AdapterDrop, 2021)."""

    @property
    def config(self) -> BottleneckConfig:
        """Every setting, with those that are None filled in from the variant."""
        chosen = {**_COMMON, **_VARIANTS[self.variant]}
        chosen |= {name: getattr(self, name) for name in chosen if getattr(self, name) is not None}
        where = chosen.pop("locations")
        return BottleneckConfig(
            mh_adapter="attention" in where,
            output_adapter="feed_forward" in where,
            cross_adapter="cross_attention" in where,
            is_parallel=self.variant == "parallel",
            ln_before=self.ln_before,
            ln_after=self.ln_after,
            dropout=self.dropout,
            leave_out=self.leave_out,
            **chosen,
        )

    @classmethod
    def of_config(cls, config: BottleneckConfig) -> BottleneckAdapter:
        """The method with these settings, as the variant that they are nearest to.

        Example:
            >>> BottleneckAdapter.of_config(BottleneckAdapter(variant="parallel").config).variant
            'parallel'
        """
        variant: Variant = "parallel" if config.is_parallel else "pfeiffer" if config.original_ln_before else "houlsby"
        plain = cls(variant=variant)
        given = {n: getattr(config, n) for n in ("dropout", "ln_before", "ln_after", "leave_out")}
        for name in (
            "reduction_factor",
            "non_linearity",
            "scaling",
            "init_weights",
            "original_ln_before",
            "residual_before_ln",
        ):
            if getattr(plain.config, name) != getattr(config, name):
                given[name] = getattr(config, name)
        where = tuple(place for place in LOCATIONS if config.places(place))
        if where != tuple(place for place in LOCATIONS if plain.config.places(place)):
            given["locations"] = where
        return cls(variant=variant, **given)

    def faults(self) -> list[Finding]:
        """Every value out of its range."""
        return self.config.faults(type(self).__name__)

    def supports(
        self,
        model: ModelFacts,
        task: Task,
        objective: Objective | None = None,
        quantization: str | None = None,
        sharding: str | None = None,
    ) -> Finding | None:
        """Refuses models in whose layers the residual stream cannot be found, and places that a model does not have."""
        return shared.refusal(self.slug, self.config, model, task)

    @classmethod
    def candidates(cls, workload: Workload) -> tuple[Method, ...]:
        """Pfeiffer's, the smallest, and the parallel one, nearest to full fine-tuning where it was compared: not on decoders."""
        return (cls(),) if workload.model.side == "decoder" else (cls(), cls(variant="parallel"))

    def recipe(self, workload: Workload) -> Recipe:
        """Rates of about 1e-4 on large and 1e-3 on small models, over twice LoRA's passes at most."""
        return Recipe(
            learning_rate=_recipes.adapter_rate(workload),
            num_train_epochs=_recipes.epochs(workload),
            warmup=_recipes.warmup(workload),
            sources=(
                "Houlsby et al., 2019: 3e-5 to 3e-3, warm-up over the first 10 % of the steps",
                "Pfeiffer et al., AdapterFusion, 2021: 1e-4 for base models, up to 30 epochs",
                _recipes.EPOCHS,
            ),
        )

    # ------------------------------------------------------------------ on a model
    def base_values_changed(self, model: nn.Module, task: Task) -> frozenset[str]:
        """The head."""
        return head_parameters(model, task)

    def apply(self, model: nn.Module, task: Task) -> nn.Module:
        """Puts the adapters in; the model itself is returned.

        Raises:
            UnsupportedError: `adapter-sites`, `adapter-location`.
        """
        from tunekit import bottleneck

        heads = head_parameters(model, task)
        shared.prepare_sites(self.slug, self.config, model)
        bottleneck.put_adapter(model, bottleneck.DEFAULT, self.config)
        bottleneck.activate(model, bottleneck.DEFAULT)
        return shared.let_learn(model, heads | bottleneck.parameters_of(model, bottleneck.DEFAULT))

    def save(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Our own format: the active adapter (of several, the last) and the head."""
        from tunekit import bottleneck

        method = self.of_config(bottleneck.config_of(model, bottleneck.last_active(model)))
        method = self if method.config == self.config else method
        delta_format.save(model, folder, method, self.trainable_names(model), state_dict)

    def load(self, model: nn.Module, folder: Path, task: Task) -> nn.Module:
        """Puts a saved adapter and its head on a fresh base; reads AdapterHub's folders too."""
        from tunekit import bottleneck

        model = self.apply(model, task)
        adapter_files.fill(model, folder, bottleneck.DEFAULT, task)
        return model
