"""From a plan to the timeline of one step of the full model: build, cut, apply the method, record, extend."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from tunekit.advisor.simulate.answers import ROWS
from tunekit.advisor.simulate.depth import at_rows
from tunekit.advisor.simulate.numbered import counts_blocks, names_blocks
from tunekit.contracts import Method, Objective
from tunekit.errors import UnsupportedError
from tunekit.sharding import whole_weights
from tunekit.task import ProblemType, Task

if TYPE_CHECKING:
    from torch import nn

    from tunekit.advisor.simulate.collated import Shape
    from tunekit.advisor.simulate.depth import Stack, Timeline
    from tunekit.advisor.simulate.loop import Prepared, Step
    from tunekit.advisor.simulate.supplied import Supplied

_MAX_FAMILIES = 64
_MAX_READY = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """The model a step is taken with, as far as it decides shapes; hashable, so that results can be kept."""

    config_json: str
    task: Task
    num_labels: int | None
    problem_type: ProblemType | None
    dtype: str
    attn_implementation: str | None
    quantization: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """A recorded step of the full model."""

    timeline: Timeline
    trainable_parameters: int
    total_parameters: int
    trainable_bytes: int
    block_bytes: int
    """Of the parameters of the largest block; 0 where the model has none."""
    assumed: tuple[str, ...]
    wrapped: bool = False
    """Whether PEFT's model is around the base."""
    kept: KeptLayers | None = None
    """Where what the frozen layers say comes with the batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptLayers:
    """The frozen layers whose answers are kept."""

    layers: int
    """How many, of the full model."""
    token_bytes: int
    """What the answer to a token takes."""


Depth = Literal["whole", "short", "shorter"]
"""How much of a model is kept: all of it, as many blocks as can stand for the others, or one fewer of each list."""


@lru_cache(maxsize=8)
def skeleton(subject: Subject, depth: Depth) -> tuple[nn.Module, tuple[Stack, ...]]:
    """The weightless model of a subject at a depth; shared, so copy before changing it. A deep one is built once."""
    from tunekit.advisor.simulate.depth import cut, cut_once_more, fresh
    from tunekit.advisor.simulate.quantized import quantize
    from tunekit.advisor.weightless import build

    if subject.quantization:
        plain, stacks = skeleton(replace(subject, quantization=None), depth)
        quantize(model := fresh(plain), subject.quantization, subject.task)
        return model, stacks
    if depth == "shorter":
        short, stacks = skeleton(subject, "short")
        model = fresh(short)
        return model, cut_once_more(model, stacks)
    model = build(
        json.loads(subject.config_json), subject.task, subject.num_labels, dtype=subject.dtype,
        problem_type=subject.problem_type, attn_implementation=subject.attn_implementation,
    )  # fmt: skip
    return model, cut(model, whole=depth == "whole")


class UntraceableError(Exception):
    """A step that cannot be taken without values, at any depth."""


_families: OrderedDict[Any, Recorded] = OrderedDict()


def record(subject: Subject, method: Method, objective: Objective | None, shape: Shape, step: Step) -> Recorded:
    """The timeline of one steady step under a method.

    Steps that differ in the number of rows alone are a family, recorded once with `ROWS` rows: every size is a multiple of the
    rows or does not depend on them. A single row is a case of its own (what would be copied may be a view), and
    so is every number of rows where the objective takes more operations for more of them.
    """
    described = json.dumps([method.to_dict(), objective.to_dict() if objective else None], sort_keys=True, default=str)
    loops = objective is not None and objective.loops_over_rows
    recorded_rows = ROWS if shape.batch > 1 and not loops else shape.batch
    family = (subject, described, replace(shape, batch=recorded_rows), step)
    if family not in _families:
        # A rank under ZeRO-3 asks too: its host would divide what is built here, and wait for ranks that do not ask.
        with whole_weights():
            made = _record(subject, method, objective, replace(shape, batch=recorded_rows), step)
        _families[family] = made if recorded_rows == ROWS else _nothing_fixed(made)
    _families.move_to_end(family)
    while len(_families) > _MAX_FAMILIES:
        _families.popitem(last=False)
    member = _families[family]
    if recorded_rows != ROWS:
        return member
    return replace(member, timeline=at_rows(member.timeline, shape.batch))


def _nothing_fixed(recorded: Recorded) -> Recorded:
    """The same, where one row cannot tell what would grow with the rows."""
    ops = ((m, c._replace(fixed_flops=0, fixed_bytes=0), n) for m, c, n in recorded.timeline.ops)
    return replace(recorded, timeline=replace(recorded.timeline, ops=tuple(ops)))


def _record(subject: Subject, method: Method, objective: Objective | None, shape: Shape, step: Step) -> Recorded:
    if names_blocks(method.to_dict()):
        return record_at(subject, method, objective, shape, step, whole=True)
    try:
        return record_at(subject, method, objective, shape, step, whole=False)
    except UntraceableError:
        raise
    except Exception:  # a method that was told the model's depth may fail on a shallow copy in ways of its own
        return record_at(subject, method, objective, shape, step, whole=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A weightless model with a method on it, to take steps with."""

    on: Prepared
    stacks: tuple[Stack, ...]
    learning: tuple[tuple[Any, ...], ...]
    """What learns in each block, by stack."""
    outside: tuple[Any, ...]
    """Shapes of the parameters that the method put outside the blocks."""
    of: tuple[Any, ...]
    """What it was made of."""
    made_up: bool
    """Whether the method had to be given values when it started."""
    shares: bool
    """Whether blocks share what the method learns."""

    def depends_on_depth(self) -> bool:
        """Whether a method does something else to a model with fewer blocks: to other blocks, or by another size outside them."""
        if self.shares and not all(s.whole for s in self.stacks):
            return True  # by groups of blocks, of which a shallow copy has others
        subject, method, described = self.of
        uneven = any(len(set(stack)) > 1 for stack in self.learning) or counts_blocks(method.to_dict())
        if all(s.whole for s in self.stacks) or not (self.outside or uneven):
            return False
        if (subject, described) not in _shorter:
            shorter = _make_ready(subject, method, described, "shorter")
            _shorter[subject, described] = shorter.outside, shorter.learning
        left = tuple(
            stack if s.whole else tuple(block for i, block in enumerate(stack) if i != len(stack) // 2)
            for s, stack in zip(self.stacks, self.learning, strict=True)
        )
        return _shorter[subject, described] != (self.outside, left)


_readied: OrderedDict[Any, Ready] = OrderedDict()
_shorter: dict[Any, tuple[Any, ...]] = {}
"""By subject and method: what the method puts outside the blocks of a model that is shorter still, and what learns inside."""


def _ready(subject: Subject, method: Method, step: Step, depth: Depth) -> Ready:
    """The model that a step is recorded with. A recorded step leaves nothing behind, so it is used again."""
    described = json.dumps(method.to_dict(), sort_keys=True, default=str)
    key = (subject, described, depth, step.optim if step.optim.lower().startswith("lora") else None)
    if key in _readied:
        _readied.move_to_end(key)
        return _readied[key]
    _readied[key] = _make_ready(subject, method, described, depth)
    while len(_readied) > _MAX_READY:
        _readied.popitem(last=False)
    return _readied[key]


def _make_ready(subject: Subject, method: Method, described: str, depth: Depth) -> Ready:
    from tunekit.advisor.simulate.made_up import Shortcuts, plain_starts
    from tunekit.advisor.weightless import weightless

    with plain_starts():
        try:
            with weightless():
                return _applied(subject, method, described, depth)
        except Exception:  # what a method may raise that looks at weights when it starts
            with Shortcuts():
                return _applied(subject, method, described, depth, made_up=True)


def _applied(subject: Subject, method: Method, described: str, depth: Depth, made_up: bool = False) -> Ready:
    from tunekit.advisor.simulate.depth import fresh
    from tunekit.advisor.simulate.loop import Prepared
    from tunekit.advisor.simulate.made_up import at_once, with_values, without_values

    bare, stacks = skeleton(subject, depth)
    base = fresh(bare)
    if made_up:
        with_values(base)
    own = list(base.parameters())
    blocks = [list(_blocks(base, s)) for s in stacks]
    head = output_head(base)
    shapes = {p.shape for p in own}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = method.apply(base, subject.task)
        at_once(model)
    originals = without_values(model, own) if made_up else frozenset(id(p) for p in own)
    learning = tuple(tuple(_learning(block) for block in stack) for stack in blocks)
    return Ready(
        on=Prepared(model=model, stacks=blocks, head=head, originals=originals), stacks=stacks, learning=learning,
        outside=_outside(model, blocks, shapes), of=(subject, method, described), made_up=made_up,
        shares=any(_shared(stack, originals) for stack in blocks),
    )  # fmt: skip


def _shared(stack: Sequence[nn.Module], originals: frozenset[int]) -> bool:
    """Whether blocks share something that learns and is not the base's own."""
    seen: set[int] = set()
    for block in stack:
        own = {id(p) for p in block.parameters() if p.requires_grad} - originals
        if own & seen:
            return True
        seen |= own
    return False


def _learning(block: nn.Module) -> Any:
    """What learns in a block: names and shapes."""
    return frozenset((name, tuple(p.shape)) for name, p in block.named_parameters() if p.requires_grad)


def record_at(
    subject: Subject, method: Method, objective: Objective | None, shape: Shape, step: Step, whole: bool
) -> Recorded:
    """Records one step on the shallow model, or on the whole one.

    Raises:
        DepthError: the shallow trace cannot stand for the whole model's.
        UntraceableError: the step looks at values; the whole model's would too.
    """
    from tunekit.advisor.simulate.depth import DepthError
    from tunekit.advisor.simulate.extension import extend
    from tunekit.advisor.simulate.loop import record_step

    ready = _ready(subject, method, step, "whole" if whole else "short")
    if not whole and ready.depends_on_depth():
        raise DepthError("what the method does hangs on the number of blocks")
    supply, kept, why = _supply(ready, subject.task, step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trace, assumed = record_step(ready.on, subject.task, shape, step, objective, supply)
        except Exception as e:
            if ready.made_up:
                raise UntraceableError(f"{type(e).__name__}: {e}") from e
            raise
    counts = _count(ready.on.model, ready.on.stacks, ready.stacks)
    said = tuple(reason for reason in (assumed, why) if reason)
    return Recorded(
        timeline=extend(trace, ready.stacks),
        assumed=said,
        wrapped=hasattr(ready.on.model, "peft_config"),
        kept=kept,
        **counts,
    )


def _supply(ready: Ready, task: Task, step: Step) -> tuple[Supplied | None, KeptLayers | None, str | None]:
    """What the frozen layers say where it comes with the batch, how many they are, and why none are."""
    from tunekit.advisor.simulate.supplied import supplied

    if not step.supplied:
        return None, None, None
    try:
        supply = supplied(ready.on, task, step)
    except UnsupportedError as e:
        return None, None, f"nothing of the frozen layers is kept: {e.findings[0].why}"
    stack = next(s for s in ready.stacks if supply.part.stack.endswith(s.name))
    frozen = len(supply.part.layers)
    layers = stack.kept[frozen] if frozen < len(stack.kept) else len(stack.templates)
    return supply, KeptLayers(layers=layers, token_bytes=supply.token_bytes), None


@lru_cache(maxsize=8)
def record_filling(subject: Subject, layers: int, shape: Shape, step: Step) -> Timeline:
    """A batch of the pass that fills the store of what the lowest layers say, on a model that has no others."""
    from tunekit.advisor.simulate.depth import fresh
    from tunekit.advisor.simulate.extension import extend
    from tunekit.advisor.simulate.loop import Prepared, record_step
    from tunekit.advisor.weightless import prepare_config

    below = prepare_config(json.loads(subject.config_json), subject.task, num_layers=max(2, layers))
    bare, stacks = skeleton(replace(subject, config_json=json.dumps(below.to_dict(), default=str)), "short")
    model = fresh(bare)
    for p in model.parameters():
        p.requires_grad_(False)
    on = Prepared(model=model, stacks=[list(_blocks(model, s)) for s in stacks])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace, _ = record_step(on, subject.task, replace(shape, batch=ROWS if shape.batch > 1 else 1), step)
    timeline = extend(trace, stacks)
    return at_rows(timeline, shape.batch) if shape.batch > 1 else timeline


def _blocks(model: nn.Module, stack: Stack) -> Sequence[nn.Module]:
    from torch.nn import ModuleList

    blocks = model.get_submodule(stack.name)
    assert isinstance(blocks, ModuleList)
    return list(blocks)


def output_head(model: Any) -> nn.Module | None:
    """The layer that makes the logits: the language model's output layer or the classifier."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for name in ("score", "classifier", "classification_head", "qa_outputs"):
        head = head if head is not None else getattr(model, name, None)
    return head


def _outside(model: nn.Module, blocks: Sequence[Sequence[nn.Module]], shapes: set[Any]) -> tuple[Any, ...]:
    """Shapes of the parameters outside the blocks that the base has none of (a copy of its head does not count)."""
    inside = {id(p) for stack in blocks for block in stack for p in block.parameters()}
    return tuple(tuple(p.shape) for p in model.parameters() if id(p) not in inside and p.shape not in shapes)


def _count(model: nn.Module, blocks: Sequence[Sequence[nn.Module]], stacks: Sequence[Stack]) -> dict[str, int]:
    """Parameters of the full model, from those of the shallow one."""
    times: dict[int, int] = {}
    for stack, modules in zip(stacks, blocks, strict=True):
        for i, module in enumerate(modules):
            copies = stack.templates.count(i)
            for p in module.parameters():
                times[id(p)] = copies
    total = trainable = size = 0
    for p in model.parameters():
        number = times.get(id(p), 1)
        total += number * getattr(p, "logical_numel", p.numel())
        if p.requires_grad:
            trainable += number * p.numel()
            size += number * p.numel() * p.element_size()
    block = max(
        (sum(p.numel() * p.element_size() for p in b.parameters()) for stack in blocks for b in stack), default=0
    )
    return {"total_parameters": total, "trainable_parameters": trainable, "trainable_bytes": size, "block_bytes": block}
