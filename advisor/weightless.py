"""Models without weights: the architecture on the meta device, built from a configuration alone."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tunekit.sharding import whole_weights
from tunekit.task import ProblemType, Task

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig

DEPTH_KEYS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
    "num_encoder_layers",
)  # fmt: skip
"""What transformers' configurations call the number of blocks."""


def build(
    config: Mapping[str, Any] | PretrainedConfig,
    task: Task | None,
    num_labels: int | None = None,
    num_layers: int | None = None,
    dtype: str | torch.dtype = "float32",
    *,
    problem_type: ProblemType | None = None,
    attn_implementation: str | None = None,
) -> nn.Module:
    """The model of a task on the meta device: every shape, no weights, no download, no remote code.

    Args:
        config: A transformers configuration or its dict (with `model_type`); never changed.
        task: Whose auto class builds it; None for the bare model without a head.
        num_labels: Classes, tags or regression targets of the head.
        num_layers: Blocks to keep of each half; None for all.
        dtype: Dtype of the weights.
        problem_type: For sequence classification; single-label where None, so that no loss has to look at values.
        attn_implementation: transformers' attention kernel; None for its default.

    Raises:
        ValueError: transformers knows no such architecture, or has no head of this task for it.

    Example:
        >>> tiny = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        ...         "num_attention_heads": 2, "vocab_size": 100}
        >>> model = build(tiny, Task.named("causal-lm"))
        >>> model.device.type, count_parameters(model)
        ('meta', 8400)
    """
    import torch
    import transformers

    config = prepare_config(config, task, num_labels, num_layers, problem_type)
    auto = getattr(transformers, task.auto_class if task else "AutoModel")
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    extra = {"attn_implementation": attn_implementation} if attn_implementation else {}
    # A rank under ZeRO-3 builds one too, alone: its host must not divide it.
    with whole_weights(), weightless():
        return auto.from_config(config, dtype=kind, trust_remote_code=False, **extra)


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Within it tensors are made on the meta device, and none is given its first values: torch works out for each how it would
    draw them, which takes longer than making the module."""
    import torch
    from torch.overrides import TorchFunctionMode

    starts = {getattr(torch.nn.init, name) for name in dir(torch.nn.init) if name.endswith("_") and name[0] != "_"}

    class Undrawn(TorchFunctionMode):
        def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in starts:
                tensor = args[0] if args else kwargs["tensor"]
                if tensor.is_meta:
                    return tensor
            return func(*args, **kwargs)

    with torch.device("meta"), Undrawn():
        yield


def prepare_config(
    config: Mapping[str, Any] | PretrainedConfig,
    task: Task | None,
    num_labels: int | None = None,
    num_layers: int | None = None,
    problem_type: ProblemType | None = None,
) -> PretrainedConfig:
    """A copy of the configuration with the task's head and the wanted depth."""
    config = read_config(config)
    if num_labels is not None and task is not None and task.name in ("sequence-classification", "token-classification"):
        config.num_labels = num_labels
    if task is not None and task.name == "sequence-classification":
        config.problem_type = problem_type or getattr(config, "problem_type", None) or "single_label_classification"
    if task is not None and task.has_head and getattr(config, "pad_token_id", None) is None:
        # Decoders that classify look for the last real token, and refuse batches without a pad token.
        config.pad_token_id = 0
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        # A configuration written by hand may lack it; published ones have it, and no shape depends on it.
        config.decoder_start_token_id = 0
    if num_layers is not None:
        _cut_depth(config, num_layers)
    return config


def read_config(config: Mapping[str, Any] | PretrainedConfig) -> PretrainedConfig:
    """A fresh configuration object from a dict, or a deep copy of one."""
    if not isinstance(config, Mapping):
        return copy.deepcopy(config)
    from transformers import AutoConfig

    values = copy.deepcopy(dict(config))
    kind = values.pop("model_type", None)
    if kind is None:
        raise ValueError("a configuration needs `model_type`")
    return AutoConfig.for_model(kind, **values)


def _cut_depth(config: Any, num_layers: int) -> None:
    """Keeps the first blocks: every depth in the configuration, and every list with one entry a block."""
    depths = {getattr(config, key) for key in DEPTH_KEYS if isinstance(getattr(config, key, None), int)}
    for key in DEPTH_KEYS:
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, min(num_layers, getattr(config, key)))
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) in depths and len(value) > num_layers:
            setattr(config, key, value[:num_layers])
        elif hasattr(value, "model_type") and hasattr(value, "to_dict"):
            _cut_depth(value, num_layers)


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Parameters of a model, tied ones once; with `trainable` only those that learn."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
