"""Rules out training without a labelled row."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example
from tunekit.finding import Finding, error

_SOURCE = "Schick and Schuetze, Exploiting Cloze Questions for Few Shot Text Classification and NLI, 2021, table 1"


def _judge(q: Question) -> Finding | None:
    if q.workload.data.num_examples > 0:
        return None
    unlabelled = q.workload.data.num_unlabelled
    why = (
        "every method here learns from labels; without any, a template answered by the model as it is reached 34 to 70 %, "
        "and training it on the unlabelled rows that it is sure of 54 to 88 %"
    )
    prompt = "prompt the model with a template in several phrasings (zero-shot), or label a few rows of each class"
    train = f"answer the {unlabelled:,} unlabelled rows by a template and train on the sure ones (self-training, iPET), or label a few rows"
    return error(
        "needs-examples", "no labelled rows to learn from", why, train if unlabelled else prompt, _SOURCE
    )  # fmt: skip


RULE = Rule(
    slug="needs-examples",
    title="Without labelled rows nothing can be fine-tuned",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (example("full", num_examples=0), example("full", num_examples=0, data={"num_unlabelled": 10_000})),
    silent=lambda: (example("full", num_examples=1),),
)
