"""A larger model of the same task at hand: a small student learns more from its answers than from the labels alone."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example, moves
from tunekit.discovery import find, slugs
from tunekit.finding import Finding

_SOURCE = (
    "Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2024, table 1; Sanh et al., DistilBERT, 2019, "
    "table 1"
)
_FEW = 3000


def _judge(q: Question) -> Finding | None:
    if q.plan.objective is None or q.plan.objective.slug != "distillation":
        return None
    few = q.workload.data.num_examples < _FEW
    return moves(
        "teacher-at-hand",
        1.5 if few else 2.5,
        "learns from a teacher's whole answers, not from the labels alone" + (", less so from few rows" if few else ""),
        "a 120M student on 12,500 instructions, five test sets: 24.6, 13.2, 16.9, 25.3, 26.6 against 23.3, 10.0, 14.7, 16.3, 18.5",
        _SOURCE,
    )


def _taught(num_examples: int) -> tuple[Question, ...]:
    if "distillation" not in slugs("objective"):
        return ()
    made = find("objective", "distillation")(teacher="owner/teacher")
    return (example("full", num_examples=num_examples, objective=made),)


RULE = Rule(
    slug="teacher-at-hand",
    title="With a larger model of the task at hand, distil it into the small one",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (*_taught(1000), *_taught(12_500)),
    silent=lambda: (example("full"), example("lora", data={"teacher": "owner/teacher"})),
)
