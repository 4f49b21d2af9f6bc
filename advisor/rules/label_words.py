"""Classes with names, few rows: filling in the name in a sentence starts from what the model already knows."""

from __future__ import annotations

from typing import Any

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.discovery import find, slugs
from tunekit.finding import Finding

_SOURCE = (
    "Schick and Schuetze, Exploiting Cloze Questions for Few Shot Text Classification and NLI, 2021, table 1; Gao et al., "
    "Making Pre-trained Language Models Better Few-shot Learners, 2021 (11 points over 15 tasks with 16 rows a class); Le "
    "Scao and Rush, How Many Data Points is a Prompt Worth?, 2021 (hundreds of rows, some 3,500 for inference)"
)
_FEW, _SOME, _INFERENCE = 100, 1000, 3500
_OF_FORM = ("acceptab", "unacceptab", "grammatical", "ungrammatical")
"""Classes that judge how a text is put and not what it says: no word in a sentence after it tells them."""


def _judge(q: Question) -> Finding | None:
    if q.plan.objective is None or q.plan.objective.slug != "prompt-learning":
        return None
    w, rows = q.workload, q.workload.data.num_examples
    if w.model.side != "encoder":
        seen = "says the classes' names; measured on masked encoders only"
        return moves("label-words", 0.2, seen, "no published comparison on this kind of model was read", _SOURCE)
    if any(name.lower().startswith(_OF_FORM) for name in w.data.label_names):
        seen, gap = (
            "judges how a text is put, for which no word stands in a sentence",
            "acceptability, 32 rows: 9.3 against 33.9 for a plain head",
        )
        return moves("label-words", -6.0, seen, gap, _SOURCE)
    why = "over a plain head at 10, 100 and 1,000 rows: +32, +9, +2 (reviews), +63, +2, 0 (news), +54, +6, +2 (questions), +8, +27, +12 (inference)"
    if rows <= _FEW:
        return moves(
            "label-words", 6.0, f"starts from the classes' names, which {rows:,} rows cannot teach", why, _SOURCE
        )
    if w.data.infers and rows <= _INFERENCE:
        seen = "starts from words for what follows from what, worth some thousand rows"
        return moves("label-words", 4.0 if rows <= _SOME else 1.0, seen, why, _SOURCE)
    if rows <= _SOME:
        return moves(
            "label-words", 1.6, "starts from the classes' names, still a help at this number of rows", why, _SOURCE
        )
    return moves("label-words", -0.1, "the names of the classes no longer help with this many rows", why, _SOURCE)


_INFERS = {"label_names": ("entailment", "contradiction")}


def _prompted(num_examples: int, **more: Any) -> tuple[Question, ...]:
    if "prompt-learning" not in slugs("objective"):
        return ()
    made = find("objective", "prompt-learning")(
        templates=("{text} It was {mask}.",), verbalizer={"good": ("good",), "bad": ("bad",)}
    )
    return (example("full", num_examples=num_examples, objective=made, **more),)


RULE = Rule(
    slug="label-words",
    title="With named classes and up to 1,000 rows, learn to fill in the name in a template",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (
        *_prompted(50),
        *_prompted(500),
        *_prompted(500, data=_INFERS),
        *_prompted(3000, data=_INFERS),
        *_prompted(5000),
        *_prompted(50, side="decoder"),
        *_prompted(50, data={"label_names": ("unacceptable", "acceptable")}),
    ),
    silent=lambda: (example("full", num_examples=50), example("lora", num_examples=50)),
)
