"""Adapters for related tasks at hand: fusing them helps where the target has few rows."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves, where_installed
from tunekit.finding import Finding

_SOURCE = (
    "Pfeiffer et al., AdapterFusion: Non-Destructive Task Composition for Transfer Learning, 2021, table 1; Poth et al., What "
    "to Pre-Train on? Efficient Intermediate Task Selection, 2021 (gains of related tasks through adapters, 11 targets)"
)
_FEW = 5000
_SOME = 50_000


def _judge(q: Question) -> Finding | None:
    w = q.workload
    if q.plan.method.slug != "adapter-fusion" or not w.data.adapters:
        return None
    few, some = w.data.num_examples < _FEW, w.data.num_examples < _SOME
    return moves(
        "adapters-at-hand",
        4.0 if few else 0.7 if some else 0.1,
        f"{len(w.data.adapters)} related adapters at hand" + (", which help a set this small most" if few else ""),
        "over single adapters: 6.1, 5.8, 5.1 and 1.1 points on 250 to 4,439 rows, 0.2 on average from 9,000 to 41,000, -0.9 to 0.4 above",
        _SOURCE,
    )


def _example(num_examples: int, adapters: tuple[str, ...] = ("a", "b")) -> Question:
    settings = {"adapters": adapters or ("a", "b")}
    return example("adapter-fusion", settings=settings, num_examples=num_examples, data={"adapters": adapters})


RULE = Rule(
    slug="adapters-at-hand",
    title="With trained adapters of related tasks and fewer than 5,000 rows, fuse them",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: where_installed("adapter-fusion", lambda: (_example(1000), _example(50_000))),
    silent=lambda: (
        *where_installed("adapter-fusion", lambda: (_example(1000, ()),)),
        example("lora", data={"adapters": ("a",)}),
    ),
)
