"""Task: what is learnt. Six of them, each with its auto class, its columns and its head."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tunekit.errors import InvalidError
from tunekit.finding import error, nearest

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
PROBLEM_TYPES: tuple[ProblemType, ...] = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is learnt: which transformers auto class builds it, what its rows look like, how it is scored.

    Example:
        >>> Task.named("token-classification").auto_class
        'AutoModelForTokenClassification'
    """

    name: str
    """The task's name, as users type it."""
    auto_class: str
    """The transformers auto class whose models learn this task."""
    peft_task_type: str | None
    """PEFT's `TaskType` value; None where PEFT has none (multiple choice)."""
    columns: tuple[tuple[str, ...], ...]
    """The sets of columns a row may have (our names); the first set is the plain one."""
    has_head: bool
    """Whether the auto class adds a head that is not in the pretrained weights, so that every method must train it."""
    metric: str
    """The metric that chooses the best checkpoint and that the report leads with."""
    greater_is_better: bool = True
    """Whether a larger value of `metric` is better."""

    @staticmethod
    def named(name: str) -> Task:
        """The task (or other form that a model is built in) of this name.

        Raises:
            InvalidError: `task-unknown`, naming the nearest.
        """
        for task in FORMS:
            if task.name == name:
                return task
        ours = _ALSO_CALLED.get(re.sub(r"[\W_]+", "-", str(name)).lower())
        fix = f"write `{ours}`" if ours else nearest(name, [t.name for t in TASKS])
        raise InvalidError(error("task-unknown", f"task {name!r}", "no such task", fix))

    def __str__(self) -> str:
        return self.name


TASKS: tuple[Task, ...] = (
    Task(
        name="causal-lm",
        auto_class="AutoModelForCausalLM",
        peft_task_type="CAUSAL_LM",
        columns=(("text",), ("prompt", "completion"), ("messages",)),
        has_head=False,
        metric="loss",
        greater_is_better=False,
    ),
    Task(
        name="seq2seq",
        auto_class="AutoModelForSeq2SeqLM",
        peft_task_type="SEQ_2_SEQ_LM",
        columns=(("source", "target"),),
        has_head=False,
        metric="loss",
        greater_is_better=False,
    ),
    Task(
        name="sequence-classification",
        auto_class="AutoModelForSequenceClassification",
        peft_task_type="SEQ_CLS",
        columns=(("text", "label"), ("text", "text_pair", "label")),
        has_head=True,
        metric="accuracy",
    ),
    Task(
        name="token-classification",
        auto_class="AutoModelForTokenClassification",
        peft_task_type="TOKEN_CLS",
        columns=(("tokens", "tags"),),
        has_head=True,
        metric="f1",
    ),
    Task(
        name="question-answering",
        auto_class="AutoModelForQuestionAnswering",
        peft_task_type="QUESTION_ANS",
        columns=(("context", "question", "answers"),),
        has_head=True,
        metric="f1",
    ),
    Task(
        name="multiple-choice",
        auto_class="AutoModelForMultipleChoice",
        peft_task_type=None,
        columns=(("text", "choices", "label"),),
        has_head=True,
        metric="accuracy",
    ),
)

MASKED_LM = Task(
    name="masked-lm",
    auto_class="AutoModelForMaskedLM",
    peft_task_type=None,
    columns=(("text",),),
    has_head=False,
    metric="loss",
    greater_is_better=False,
)
"""How an encoder is built that fills in blanks. No plan names it: an objective may learn a plan's task in this form."""

FORMS: tuple[Task, ...] = (*TASKS, MASKED_LM)
"""Every form that a model is built in."""

_ALSO_CALLED = {
    "causal-language-modeling": "causal-lm",
    "clm": "causal-lm",
    "conversational": "causal-lm",
    "instruction-tuning": "causal-lm",
    "language-modeling": "causal-lm",
    "sft": "causal-lm",
    "text-generation": "causal-lm",
    "seq-2-seq-lm": "seq2seq",
    "summarization": "seq2seq",
    "text2text-generation": "seq2seq",
    "translation": "seq2seq",
    "classification": "sequence-classification",
    "nli": "sequence-classification",
    "regression": "sequence-classification",
    "sentiment-analysis": "sequence-classification",
    "seq-cls": "sequence-classification",
    "text-classification": "sequence-classification",
    "ner": "token-classification",
    "tagging": "token-classification",
    "token-cls": "token-classification",
    "extractive-qa": "question-answering",
    "qa": "question-answering",
    "question-ans": "question-answering",
    "squad": "question-answering",
    "swag": "multiple-choice",
}
"""What pipelines, PEFT and users call these tasks, lower case with hyphens: an error can then name ours."""
