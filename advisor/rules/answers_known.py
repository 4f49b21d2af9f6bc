"""The model would already write what it is to learn: prompting it may be enough."""

from __future__ import annotations

from tunekit.advisor.rule import Question, Rule, example
from tunekit.finding import Finding, note

_SOURCE = (
    "Brown et al., Language Models are Few-Shot Learners, 2020 (LAMBADA: 76.2 and 86.4 % by prompts without and with examples, "
    "68.0 for the best trained system before)"
)
_LITTLE = 0.5
"""Nats a token: each answer's token was given a probability of 0.6 on (geometric) average."""


def _judge(q: Question) -> Finding | None:
    w = q.workload
    if w.data.own_loss is None or w.task.has_head or w.data.own_loss > _LITTLE:
        return None
    return note(
        "answers-known",
        f"before any training the model loses only {w.data.own_loss:.2f} nats a token on these answers",
        "it would write most of them already, so there is little left to learn",
        "prompt it with a few of the rows first; fine-tune if that is not enough, or for shorter prompts",
        _SOURCE,
    )


def _example(own_loss: float | None, task: str = "causal-lm") -> Question:
    return example("lora", task=task, side="decoder", num_parameters=8 * 10**9, data={"own_loss": own_loss})


RULE = Rule(
    slug="answers-known",
    title="Where the model already gives the answers a high probability, prompting may be enough",
    source=_SOURCE,
    judge=_judge,
    fires=lambda: (_example(0.3),),
    silent=lambda: (_example(None), _example(1.5), _example(0.3, "sequence-classification")),
)
