"""Students made of a teacher: fewer of its layers, everything else as it is; found by structure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.errors import InvalidError, UnsupportedError
from tunekit.finding import Finding, error
from tunekit.structure import blocks, quantization_of, task_model

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Student:
    """A student, what it was made of, and how large it is; prints itself."""

    model: Any
    layers: Mapping[str, tuple[int, ...]]
    """For each stack by name the teacher's layers that it kept, counted from 1."""
    num_parameters: int
    teacher_parameters: int

    def __str__(self) -> str:
        kept = "; ".join(f"{name or 'layers'} {', '.join(map(str, chosen))}" for name, chosen in self.layers.items())
        share = self.num_parameters / self.teacher_parameters
        return (
            f"{_millions(self.num_parameters)} of {_millions(self.teacher_parameters)} parameters ({share:.0%}); {kept}"
        )


def _millions(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def make_student(teacher: nn.Module, num_layers: int, *, num_encoder_layers: int | None = None) -> Student:
    """A shallower student that starts from every k-th layer of its teacher, with its embeddings and its head.

    The layers are spread evenly, the first one always among them (which in T5 holds the positions of all): 1, 3, 5 of six
    for three (Sanh et al., DistilBERT, 2019). The student has weights of its own; the teacher stays as it is.

    Args:
        teacher: Any transformers model with its layers in lists: encoder, decoder or both.
        num_layers: Layers of the student; of an encoder-decoder those of its decoder.
        num_encoder_layers: Layers of an encoder-decoder's encoder; None: as many as `num_layers`.

    Raises:
        InvalidError: `student-layers`, where there are not as many layers.
        UnsupportedError: `student-architecture`, where the layers cannot be told apart (ALBERT has one for all), and for
            quantised weights and models with adapters in them.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32, vocab_size=50)
        >>> student = make_student(BertForSequenceClassification(config), num_layers=3)
        >>> dict(student.layers), student.model.config.num_hidden_layers
        ({'bert.encoder.layer': (1, 3, 5)}, 3)

    References:
        Sanh, Debut, Chaumond, Wolf, DistilBERT, a distilled version of BERT, 2019.
    """
    stacks = blocks(teacher)
    _refuse_unfit(teacher, stacks)
    wanted = [num_layers] if len(stacks) == 1 else [num_encoder_layers or num_layers, num_layers]
    _refuse_sizes(stacks, wanted)
    chosen = {name: _spread(len(layers), n) for (name, layers), n in zip(stacks, wanted, strict=True)}
    made = _built(teacher, _shallower_config(teacher, stacks, chosen))
    _copy(teacher, made, chosen)
    made.train(teacher.training)
    return Student(
        model=made, layers={name: tuple(i + 1 for i in kept) for name, kept in chosen.items()},
        num_parameters=_size(made), teacher_parameters=_size(teacher),
    )  # fmt: skip


def _spread(have: int, want: int) -> tuple[int, ...]:
    return tuple(i * have // want for i in range(want))


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _refuse_unfit(teacher: nn.Module, stacks: Any) -> None:
    config: Any = getattr(teacher, "config", None)
    repeated = getattr(config, "num_hidden_layers", None)
    seq2seq = bool(getattr(config, "is_encoder_decoder", False))
    if quantization_of(teacher) is not None:
        raise UnsupportedError(_unfit(teacher, "its weights are quantised", "load it in 16 or 32 bits"))
    if task_model(teacher) is not teacher or "_tunekit" in vars(teacher):
        raise UnsupportedError(_unfit(teacher, "a method is on it", "merge it first (`tunekit.attach.merge`)"))
    if len(stacks) != (2 if seq2seq else 1) or (not seq2seq and len(stacks[0][1]) != repeated):
        why = "its layers are not one list a stack with a module for each (ALBERT shares one module among all)"
        raise UnsupportedError(
            _unfit(teacher, why, "use a smaller model of the family, or distil into a plan's method")
        )


def _unfit(teacher: nn.Module, why: str, fix: str) -> Finding:
    return error("student-architecture", f"a student of a `{type(teacher).__name__}`", why, fix)


def _refuse_sizes(stacks: Any, wanted: list[int]) -> None:
    if any(not 1 <= n <= len(layers) for (_, layers), n in zip(stacks, wanted, strict=True)):
        have = " and ".join(str(len(layers)) for _, layers in stacks)
        seen = f"a student of {' and '.join(map(str, wanted))} layers from a teacher of {have}"
        raise InvalidError(error("student-layers", seen, "its layers are the teacher's", f"set `num_layers` from 1 to {have}"))  # fmt: skip


_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "num_encoder_layers")
_DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")


def _shallower_config(teacher: Any, stacks: Any, chosen: Mapping[str, tuple[int, ...]]) -> Any:
    """The teacher's configuration with fewer layers; lists with an entry a layer (kinds of attention) are thinned too."""
    config = copy.deepcopy(teacher.config)
    kept = list(chosen.values())
    depths = [len(layers) for _, layers in stacks]
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == depths[0] and name != "architectures" and len(stacks) == 1:
            setattr(config, name, [value[i] for i in kept[0]])
    for name in _COUNTS:
        if name in vars(config) and vars(config)[name] == depths[0]:
            setattr(config, name, len(kept[0]))
    if len(stacks) == 2:
        for name in _DECODER_COUNTS:
            if name in vars(config) and vars(config)[name] == depths[1]:
                setattr(config, name, len(kept[1]))
    return config


def _built(teacher: nn.Module, config: Any) -> Any:
    """An empty model of the teacher's class, dtype and device."""
    import torch

    first = next(p for p in teacher.parameters() if p.is_floating_point())
    before = torch.get_default_dtype()
    kind: Any = type(teacher)
    try:
        torch.set_default_dtype(first.dtype)
        with torch.device(first.device):
            return kind(config)
    finally:
        torch.set_default_dtype(before)


def _copy(teacher: nn.Module, made: nn.Module, chosen: Mapping[str, tuple[int, ...]]) -> None:
    """The teacher's values in the student's places.

    Raises:
        UnsupportedError: `student-architecture`, where a place has no value of its shape.
    """
    values = teacher.state_dict()
    state = {name: values.get(_origin(name, chosen)) for name in made.state_dict()}
    strange = [n for n, p in made.state_dict().items() if state[n] is None or state[n].shape != p.shape]
    if strange:
        why = f"its configuration does not give fewer layers ({strange[0]})"
        raise UnsupportedError(_unfit(teacher, why, "use a smaller model of the family"))
    made.load_state_dict(state)


def _origin(name: str, chosen: Mapping[str, tuple[int, ...]]) -> str:
    """The teacher's name of a student's tensor."""
    for stack, kept in chosen.items():
        if name.startswith(f"{stack}."):
            number, dot, rest = name.removeprefix(f"{stack}.").partition(".")
            return f"{stack}.{kept[int(number)]}{dot}{rest}"
    return name
