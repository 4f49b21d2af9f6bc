"""Depth: a shallow copy of a deep model, and the timeline of a step on the whole one.

A deep model repeats its blocks. The shallow copy keeps the first two, the last two and one of each kind in each
neighbourhood between them; a block that was left out is a copy of one that was kept.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from tunekit.advisor.simulate.answers import ROWS, Cost
from tunekit.advisor.simulate.trace import PARTS
from tunekit.advisor.weightless import DEPTH_KEYS

_EDGE = 2
"""Blocks kept at either end: the outermost one differs, and its neighbour frees what it made."""


_KEPT_PARTS = [PARTS.index(part) for part in ("weights", "adapters", "gradients", "optimizer")]
"""What no number of rows changes."""


class DepthError(Exception):
    """The shallow trace does not repeat as expected; the model has to be traced whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """One list of blocks, cut short."""

    name: str
    """The list's module name in the base model."""
    kept: tuple[int, ...]
    """Numbers, in the full model, of the blocks that were kept."""
    templates: tuple[int, ...]
    """For each block of the full model the position, among the kept ones, of the block that stands for it."""

    @property
    def whole(self) -> bool:
        """Whether nothing was cut."""
        return len(self.kept) == len(self.templates)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """The events of a whole step on the full model."""

    events: np.ndarray
    """Storage numbers in the order they are born, their complements where they die."""
    sizes: np.ndarray
    """Bytes by storage number."""
    parts: np.ndarray
    """Index into `PARTS` by storage number."""
    moments: tuple[tuple[int, str], ...]
    """(index of the first event, moment), ascending."""
    ops: tuple[tuple[str, Cost, int], ...]
    """(moment, op, how often), in order of first occurrence."""


# ---------------------------------------------------------------------- cutting
def find_stacks(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """The outermost lists of modules that are long enough to repeat."""
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) > 1 and not inside:
            found.append((name, module))
    return found


def cut(model: nn.Module, whole: bool = False) -> tuple[Stack, ...]:
    """Cuts a weightless model short in place, with its configuration, and says how.

    Args:
        model: A model on the meta device.
        whole: Keep every block.
    """
    stacks = []
    for name, blocks in find_stacks(model):
        kinds = [_kind(model, block, i, len(blocks)) for i, block in enumerate(blocks)]
        kept = tuple(range(len(blocks))) if whole else keep(kinds)
        stacks.append(Stack(name=name, kept=kept, templates=_templates(kinds, kept)))
    if any(not s.whole for s in stacks):
        if not _consistent(stacks):
            return cut(model, whole=True)
        for stack in stacks:
            _cut_stack(model, stack)
    return tuple(stacks)


def cut_once_more(model: nn.Module, stacks: Sequence[Stack]) -> tuple[Stack, ...]:
    """Takes one more block out of the middle of each list that was cut, in place; what it says fits no trace."""
    shorter = []
    for stack in stacks:
        kept = range(len(stack.kept))
        left = tuple(i for i in kept if stack.whole or i != len(kept) // 2)
        shorter.append(Stack(name=stack.name, kept=left, templates=tuple(kept)))
    for stack in shorter:
        if not stack.whole:
            _cut_stack(model, stack)
    return tuple(shorter)


def _consistent(stacks: Sequence[Stack]) -> bool:
    """Whether stacks of the same length are cut alike, so that one configuration can describe both."""
    by_length: dict[int, set[tuple[int, ...]]] = {}
    for stack in stacks:
        by_length.setdefault(len(stack.templates), set()).add(stack.kept)
    return all(len(cuts) == 1 for cuts in by_length.values())


def _cut_stack(model: nn.Module, stack: Stack) -> None:
    blocks = model.get_submodule(stack.name)
    assert isinstance(blocks, nn.ModuleList)
    parent, _, leaf = stack.name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.ModuleList([blocks[i] for i in stack.kept]))
    for new, old in enumerate(stack.kept):
        for module in blocks[old].modules():
            for key in ("layer_idx", "layer_id", "layer_number"):
                if vars(module).get(key) == old:
                    setattr(module, key, new)
    for config in {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}.values():
        _cut_config(config, stack)


def _cut_config(config: object, stack: Stack) -> None:
    """The configuration of the shallow model: its depth, and each list with one entry a block."""
    length = len(stack.templates)
    for key in DEPTH_KEYS:
        if getattr(config, key, None) == length:
            setattr(config, key, len(stack.kept))
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == length:
            setattr(config, key, [value[i] for i in stack.kept])


def keep(kinds: Sequence[Hashable]) -> tuple[int, ...]:
    """Numbers of the blocks to keep so that each one left out has a stand-in with the same kind and neighbours.

    Example:
        >>> keep(["a"] * 32)
        (0, 1, 29, 30, 31)
        >>> keep(["a", "b"] * 12)
        (0, 1, 20, 21, 22, 23)
    """
    kept = list(range(len(kinds)))
    while True:
        shorter = _shorten(kept, kinds)
        if shorter is None:
            return tuple(kept)
        kept = shorter


def _shorten(kept: list[int], kinds: Sequence[Hashable]) -> list[int] | None:
    """The list without its longest run of blocks that are not needed, or None."""
    n = len(kept)
    around = _neighbourhoods([kinds[i] for i in kept])
    for length in range(n - 2 * _EDGE - 1, 0, -1):
        for i in range(_EDGE, n - _EDGE - length):
            j = i + length
            if kinds[kept[i]] != kinds[kept[j]] or kinds[kept[i - 1]] != kinds[kept[j - 1]]:
                continue
            left = kept[:i] + kept[j:]
            inner = set(around[_EDGE:i] + around[j : n - _EDGE])
            if inner >= set(around[i:j]):
                return left
    return None


def _neighbourhoods(kinds: Sequence[Hashable]) -> list[tuple[Hashable, ...]]:
    padded = [None, *kinds, None]
    return [(padded[i], padded[i + 1], padded[i + 2]) for i in range(len(kinds))]


def _templates(kinds: Sequence[Hashable], kept: tuple[int, ...]) -> tuple[int, ...]:
    if len(kept) == len(kinds):
        return kept
    around = _neighbourhoods(kinds)
    own = {full: short for short, full in enumerate(kept)}
    stand_in = {around[full]: short for short, full in enumerate(kept) if _EDGE <= short < len(kept) - _EDGE}
    return tuple(own[i] if i in own else stand_in[around[i]] for i in range(len(kinds)))


def _kind(model: nn.Module, block: nn.Module, index: int, length: int) -> Hashable:
    """What makes two blocks the same: their modules, settings, parameters and entries of the configuration's lists."""
    config = getattr(model, "config", None)
    listed = tuple(
        str(v[index])
        for v in (vars(config).values() if config is not None else ())
        if isinstance(v, list) and len(v) == length
    )
    modules = tuple((name, type(m).__name__, _settings(m, index)) for name, m in block.named_modules())
    shapes = tuple((name, tuple(p.shape), p.dtype) for name, p in block.named_parameters())
    return hash((listed, modules, shapes))


def _settings(module: nn.Module, index: int) -> tuple[tuple[str, object], ...]:
    return tuple(
        (k, v)
        for k, v in sorted(vars(module).items())
        if isinstance(v, int | float | str | bool | torch.Size) and k not in ("layer_idx", "layer_id", "layer_number")
    )


def fresh(model: nn.Module) -> nn.Module:
    """A copy of a weightless model that may be changed."""
    return copy.deepcopy(model)


# ---------------------------------------------------------------------- rows
_ALIGNMENT = 64
"""Bytes to which the attention kernels align the rows of a bias: 16 elements of 4 bytes."""


def at_rows(timeline: Timeline, rows: int) -> Timeline:
    """The timeline with another number of rows, from the one that was recorded with `ROWS`.

    Every tensor of a step grows with the rows or does not; from two rows on no op treats their number as a case of its own.
    A storage that ends with the last element in use, as that of an attention bias cut out of one with aligned rows, is short
    of a multiple by what is cut off at its end.
    """
    short = -timeline.sizes % ROWS
    grows = (short < _ALIGNMENT) & ~np.isin(timeline.parts, _KEPT_PARTS)
    sizes = np.where(grows, (timeline.sizes + short) // ROWS * rows - short, timeline.sizes)
    return replace(timeline, sizes=sizes, ops=tuple((m, cost.at_rows(rows), n) for m, cost, n in timeline.ops))
