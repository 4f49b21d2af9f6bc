"""What one rank holds at the fullest moment: of a training step, or of an evaluation between two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tunekit.advisor.simulate.card import workspace_bytes
from tunekit.advisor.simulate.question import Question

if TYPE_CHECKING:
    from tunekit.advisor.simulate.collated import Shape
    from tunekit.advisor.simulate.loop import Loop
    from tunekit.advisor.simulate.peak import Peak
    from tunekit.advisor.simulate.per_rank import PerRank
    from tunekit.advisor.simulate.record import Recorded

_EVALUATED = "the evaluation, {} rows at a time, takes more than a training step"
_SAVED = "saving gathers all weights on the first rank, which takes more than a training step"
_FILLED = "the pass through the frozen layers before the first step, {} rows at a time, takes more than a training step"


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What one rank holds at the fullest moment of a step."""

    recorded: Recorded
    share: PerRank
    top: Peak
    fixed: Mapping[str, int]
    trained: Held | None = None
    """The training step, where something else is fuller."""
    why: str = ""
    """What that is."""

    @property
    def allocated_bytes(self) -> int:
        return self.top.num_bytes + sum(self.fixed.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part; they sum to `allocated_bytes`."""
        both = dict(self.top.parts)
        for part, size in self.fixed.items():
            both[part] = both.get(part, 0) + size
        return both

    @property
    def pieces(self) -> list[int]:
        """The allocations that make up what lives beside the timeline."""
        halves = ((n // 2, n // 2) if part == "workspace" else (n,) for part, n in self.fixed.items())
        return [n for both in halves for n in both]


def held(asked: Question, shape: Shape) -> Held:
    """The training step, or what takes more: an evaluation between two of them or the pass through the frozen layers before the
    first, which keep nothing but may have more rows, or a checkpoint.
    """
    from tunekit.advisor.simulate.peak import peak
    from tunekit.advisor.simulate.saving import saved, saving_bytes

    trained = held_in(asked, shape)
    rows = asked.plan.per_device_eval_batch_size
    others = []
    if asked.loop == "trainer" and rows > shape.batch and _evaluates(asked):
        seen = held_in(asked, replace(shape, batch=rows), "trainer-evaluation")
        others.append(replace(seen, trained=trained, why=_EVALUATED.format(rows)))
    if trained.recorded.kept is not None:
        others.append(replace(_filling(asked, shape, trained), trained=trained, why=_FILLED.format(rows)))
    if asked.loop == "trainer" and not asked.cuda and (size := saving_bytes(trained.recorded, asked.plan)):
        timeline = saved(trained.share.timeline, size)
        share = replace(trained.share, timeline=timeline)
        others.append(replace(trained, share=share, top=peak(timeline), trained=trained, why=_SAVED))
    return max(trained, *others, key=lambda h: h.allocated_bytes) if others else trained


def _filling(asked: Question, shape: Shape, trained: Held) -> Held:
    """The pass that fills the store of what the frozen layers say."""
    from tunekit.advisor.simulate.kept import filling_timeline
    from tunekit.advisor.simulate.peak import peak

    timeline = filling_timeline(asked, shape, trained.recorded)
    share = replace(trained.share, timeline=timeline)
    return Held(recorded=trained.recorded, share=share, top=peak(timeline, _grain(asked)), fixed=trained.fixed)


def held_in(asked: Question, shape: Shape, loop: Loop | None = None) -> Held:
    """A step of the question's loop, or of another one."""
    from tunekit.advisor.simulate.kept import in_memory
    from tunekit.advisor.simulate.peak import peak
    from tunekit.advisor.simulate.per_rank import per_rank

    recorded = asked.recorded(shape, loop)
    share = per_rank(recorded, asked.plan)
    library = {"workspace": workspace_bytes(asked.hardware)} if asked.cuda else {}
    fixed = {**share.fixed, **library, **in_memory(asked, recorded)}
    return Held(recorded=recorded, share=share, top=peak(share.timeline, _grain(asked)), fixed=fixed)


def _grain(asked: Question) -> int:
    """Bytes that sizes are rounded up to."""
    return 512 if asked.cuda else 1


def _evaluates(asked: Question) -> bool:
    """Whether there are rows to evaluate on."""
    if asked.data is not None and asked.data.num_eval_examples:
        return True
    source = asked.plan.data
    return source is not None and bool(source.eval_split or source.eval_path or source.eval_share)
