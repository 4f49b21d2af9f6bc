"""PEFT's published runs: methods as PEFT's own code has them, where ours are built another way, and what evaluations reserve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp, log, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from tunekit.advisor.simulate.batches import PEFT_MEAN, PEFT_SHORTEST, PEFT_WINDOW
from tunekit.contracts import Method
from tunekit.discovery import find

if TYPE_CHECKING:
    from tunekit.advisor.simulate.collated import Shape
    from tunekit.advisor.simulate.depth import Timeline

_ROWS, _WINDOWS_EVALUATED_IN = 20_000, 10
"""Rows of such a run; of its 250 windows those in whose middle it evaluates (each 500 steps, a window being 20), with what its
longest batch reserved still there."""
_MAY_BE = (0.5, 0.55, 0.6, 0.65, 0.7)
"""How long the longest row of those windows is, nobody says: what it may be, as quantiles. The one that reserves most counts, since
whether a prompt for every row fits into what the steps left turns on a few tokens, and who plans for too little runs out."""


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


_INPUTS = 3
"""Tensors of the first batch, which a record takes before its first step begins: tokens, mask and labels."""


def evaluated(shape: Shape) -> Shape:
    """The shape whose record holds two steps that can stand for steps of any length between theirs, with an evaluation."""
    return replace(shape, previous_length=shape.length - 8 * ((shape.length - min(PEFT_SHORTEST, shape.length)) // 8))


def answering(timeline: Timeline, shape: Shape, pieces: Sequence[int]) -> int:
    """What a run reserves when it generates answers: in the middle of a window, at the end of one, and after the last step.

    The cache is emptied every ten steps, half a window: after its longest batches come generated answers, or after its shortest;
    the test set comes with the cache empty.

    Args:
        timeline: Recorded in the shape that `evaluated` gives.
        shape: Of it.
        pieces: Bytes that live beside the tensors.
    """
    from tunekit.advisor.simulate.allocator import end_of_start
    from tunekit.advisor.simulate.generation import generated
    from tunekit.advisor.simulate.loop import BETWEEN
    from tunekit.advisor.simulate.sequence import Replay, crossing
    from tunekit.advisor.simulate.trace import EVALUATION, GENERATION

    whole = generated(timeline)
    at = {moment: start for start, moment in reversed(whole.moments)}
    bounds = (end_of_start(whole) - _INPUTS, at[BETWEEN], at[EVALUATION])
    step = crossing(whole, bounds, (shape.length, shape.previous_length))
    longest, window = _lengths(shape.length)
    prompts, answers = whole.events[at[EVALUATION] : at[GENERATION]], whole.events[at[EVALUATION] :]
    reserved = 0
    for lengths, emptied, events in (
        *(([top, window[1], window[9]], False, prompts) for top in longest),
        (window[10:], False, answers),
        (window[10:], True, answers),
    ):
        run = Replay(whole, pieces, preloads=True)
        run.step(step, window[-1])
        run.allocator.empty_cache()
        for length in lengths:
            run.step(step, length)
        if emptied:
            run.allocator.empty_cache()
        run.once(events, whole.sizes, "evaluation")
        reserved = max(reserved, run.allocator.peak_reserved)
    return reserved


def _lengths(longest: int) -> tuple[list[int], list[int]]:
    """What the longest batch before an evaluation may be, and the batches of a window; lengths are taken to be log-normal."""
    rank = NormalDist().inv_cdf
    top = rank(1 - 0.6 / _ROWS)
    spread = top - sqrt(max(top**2 - 2 * log(max(longest / PEFT_MEAN, 1.0)), 0.0))

    def at(share: float) -> int:
        return min(longest, max(1, round(longest * exp(spread * (rank(share) - top)))))

    rows = PEFT_WINDOW * _WINDOWS_EVALUATED_IN
    return [at(share ** (1 / rows)) for share in _MAY_BE], [
        at(1 - (4 * batch + 0.6) / PEFT_WINDOW) for batch in range(PEFT_WINDOW // 4)
    ]
