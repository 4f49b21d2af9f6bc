"""Metrics: scores of an evaluation, added up batch by batch, so that no logits are held.

For `TrainingArguments(batch_eval_metrics=True)`. The logits of a batch are reduced where they are (to the most likely tag,
to the loss of a row, ...), gathered over ranks in that small form, and added to a handful of counts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.scores import Counts, correlation, entities, f1, is_bio, ranks, ratio
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from transformers import EvalPrediction

IGNORE = -100
MAX_ANSWER_TOKENS = 30
"""Longest answer that question answering looks for, as in transformers' examples."""
_CHUNK_ELEMENTS = 2**22
"""Logits whose loss is computed at the same time."""

Preprocess = Callable[[Any, Any], Any]


def metrics(task: Task, problem_type: str | None = None, label_names: Sequence[str] = ()) -> tuple[Metrics, Preprocess]:
    """`compute_metrics` and `preprocess_logits_for_metrics` of a task, to hand to a Trainer.

    What is reported, all between 0 and 1 unless said otherwise, and 0 where a score is not defined:

    - one class a row: `accuracy`, `f1_macro` (over the classes that occur), `matthews` (-1 to 1)
    - several classes a row (logit above 0): `f1_micro`, `f1_macro`, `accuracy` (all classes of a row right)
    - regression: `spearman`, `pearson` (-1 to 1; of several targets the mean), `mse`
    - token classification: `precision`, `recall`, `f1` of whole entities by the CoNLL rule where the tags are BIO or
      BIOES, otherwise macro over the tags; `accuracy` of tags
    - question answering, by windows and token positions, not by words of the text: `exact` (first and last token right) and
      `f1` (overlap of the two stretches of tokens)
    - multiple choice: `accuracy`
    - causal-lm and seq2seq: `loss` (nats per supervised token over the whole set, where a Trainer's own is a mean over
      batches), `perplexity`, `token_accuracy`

    Args:
        task: What was learnt.
        problem_type: For sequence classification.
        label_names: The classes or tags in the order of their ids.

    Example:
        >>> import torch
        >>> from transformers import EvalPrediction
        >>> compute, preprocess = metrics(Task.named("multiple-choice"))
        >>> logits, labels = torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])
        >>> compute(EvalPrediction(preprocess(logits, labels), labels), compute_result=True)
        {'accuracy': 0.5}
    """
    match task.name:
        case "question-answering":
            return AnswerMetrics(), best_spans
        case "token-classification":
            return (EntityMetrics(label_names) if is_bio(label_names) else TagMetrics()), most_likely
        case "multiple-choice":
            return ChoiceMetrics(), first_output
        case "causal-lm":
            return LanguageMetrics(), next_token_losses
        case "seq2seq":
            return LanguageMetrics(), token_losses
    by_problem = {"regression": RegressionMetrics, "multi_label_classification": MultiLabelMetrics}
    return by_problem.get(problem_type or "", ClassMetrics)(), first_output


# ---------------------------------------------------------------------------------------------- logits of one batch
def first_output(logits: Any, labels: Any) -> torch.Tensor:
    """The logits alone: a model may return more beside them."""
    return logits[0] if isinstance(logits, tuple | list) else logits


def most_likely(logits: Any, labels: Any) -> torch.Tensor:
    """The most likely tag at each token, (rows, tokens)."""
    return first_output(logits, labels).argmax(-1)


def best_spans(logits: Any, labels: Any) -> torch.Tensor:
    """First and last token of the likeliest answer of at most `MAX_ANSWER_TOKENS`, (rows, 2)."""
    import torch

    start, end = logits[0].float(), logits[1].float()
    scores, firsts = [], []
    for extra in range(min(MAX_ANSWER_TOKENS, start.shape[1])):
        score, first = (start[:, : start.shape[1] - extra] + end[:, extra:]).max(1)
        scores.append(score)
        firsts.append(first)
    extra = torch.stack(scores).argmax(0)
    first = torch.stack(firsts).gather(0, extra[None])[0]
    return torch.stack([first, first + extra], 1)


def next_token_losses(logits: Any, labels: Any) -> torch.Tensor:
    """`token_losses` of a causal model, whose logits at a token are about the next one."""
    logits = first_output(logits, labels)
    if labels is None:
        return logits.argmax(-1)
    logits = logits[:, -labels.shape[1] :]  # PEFT's soft prompts come before the row's own tokens
    return token_losses(logits[:, :-1], labels[:, 1:])


def token_losses(logits: Any, labels: Any) -> torch.Tensor:
    """Of each row: the sum of the supervised tokens' losses (nats), their number, and how many were likeliest, (rows, 3).

    Without labels the most likely tokens, (rows, tokens).
    """
    import torch
    from torch.nn.functional import cross_entropy

    logits = first_output(logits, labels)
    if labels is None:
        return logits.argmax(-1)
    rows = torch.zeros(len(labels), 3, dtype=torch.float32, device=logits.device)
    where = (labels != IGNORE).nonzero()
    for chunk in where.split(max(1, _CHUNK_ELEMENTS // logits.shape[-1])):
        row, token = chunk.unbind(1)
        scores, targets = logits[row, token].float(), labels[row, token]
        right = (scores.argmax(-1) == targets).float()
        found = torch.stack([cross_entropy(scores, targets, reduction="none"), torch.ones_like(right), right], 1)
        rows.index_add_(0, row, found)
    return rows


# -------------------------------------------------------------------------------------------------------- the adding up
class Metrics(ABC):
    """`compute_metrics` that adds up batches and answers at the last one; then it begins anew."""

    def __init__(self) -> None:
        self.reset()

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Adds a batch; with `compute_result` the scores of all batches since the last answer."""
        self.add(_host(prediction.predictions), _host(prediction.label_ids))
        if not compute_result:
            return {}
        scores = {name: float(value) for name, value in self.result().items()}
        self.reset()
        return scores

    @abstractmethod
    def reset(self) -> None:
        """Forgets all batches; also the way out after an evaluation that was interrupted."""

    @abstractmethod
    def add(self, predictions: Any, labels: Any) -> None:
        """Adds one batch, on the host."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """The scores of everything added."""


def _host(value: Any) -> Any:
    """Tensors or arrays as tensors on the host."""
    import torch

    if isinstance(value, tuple | list):
        return tuple(_host(v) for v in value)
    return torch.as_tensor(value).detach().cpu()


class ClassMetrics(Metrics):
    """One class a row."""

    def reset(self) -> None:
        self.counts = Counts()

    def add(self, predictions: Any, labels: Any) -> None:
        kept = labels != IGNORE
        self.counts.add(predictions.argmax(-1)[kept], labels[kept])

    def result(self) -> dict[str, float]:
        c = self.counts
        return {"accuracy": c.accuracy, "f1_macro": c.macro()[2], "matthews": c.matthews()}


class ChoiceMetrics(ClassMetrics):
    """One choice a row."""

    def result(self) -> dict[str, float]:
        return {"accuracy": self.counts.accuracy}


class TagMetrics(ClassMetrics):
    """One tag a token, where tags are no stretches."""

    def add(self, predictions: Any, labels: Any) -> None:
        kept = labels != IGNORE
        self.counts.add(predictions[kept], labels[kept])

    def result(self) -> dict[str, float]:
        precision, recall, mean_f1 = self.counts.macro()
        return {"precision": precision, "recall": recall, "f1": mean_f1, "accuracy": self.counts.accuracy}


class EntityMetrics(TagMetrics):
    """Entities in BIO or BIOES tags."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self.right = self.predicted = self.actual = 0

    def add(self, predictions: Any, labels: Any) -> None:
        super().add(predictions, labels)
        for guess, truth in zip(predictions, labels, strict=True):
            kept = truth != IGNORE
            found, wanted = (set(entities([self.names[i] for i in t[kept].tolist()])) for t in (guess, truth))
            self.right += len(found & wanted)
            self.predicted += len(found)
            self.actual += len(wanted)

    def result(self) -> dict[str, float]:
        return {
            "precision": ratio(self.right, self.predicted),
            "recall": ratio(self.right, self.actual),
            "f1": f1(self.right, self.predicted, self.actual),
            "accuracy": self.counts.accuracy,
        }


class MultiLabelMetrics(Metrics):
    """Any number of classes a row."""

    right: Any
    predicted: Any
    actual: Any

    def reset(self) -> None:
        self.right = self.predicted = self.actual = 0
        self.rows = self.exact = 0

    def add(self, predictions: Any, labels: Any) -> None:
        guess, truth = predictions > 0, labels > 0.5
        self.right = self.right + (guess & truth).sum(0)
        self.predicted = self.predicted + guess.sum(0)
        self.actual = self.actual + truth.sum(0)
        self.rows += len(labels)
        self.exact += int((guess == truth).all(1).sum())

    def result(self) -> dict[str, float]:
        by_class = list(zip(*(t.tolist() for t in (self.right, self.predicted, self.actual)), strict=True))
        return {
            "f1_micro": f1(*(sum(c) for c in zip(*by_class, strict=True))),
            "f1_macro": ratio(sum(f1(*c) for c in by_class), len(by_class)),
            "accuracy": ratio(self.exact, self.rows),
        }


class RegressionMetrics(Metrics):
    """Numbers. Ranks need every value, so two numbers a row are held."""

    def reset(self) -> None:
        self.guesses: list[Any] = []
        self.truths: list[Any] = []

    def add(self, predictions: Any, labels: Any) -> None:
        self.guesses.append(predictions.double().reshape(len(labels), -1))
        self.truths.append(labels.double().reshape(len(labels), -1))

    def result(self) -> dict[str, float]:
        import torch

        guess, truth = torch.cat(self.guesses), torch.cat(self.truths)
        targets = range(guess.shape[1])
        return {
            "spearman": sum(correlation(ranks(guess[:, t]), ranks(truth[:, t])) for t in targets) / len(targets),
            "pearson": sum(correlation(guess[:, t], truth[:, t]) for t in targets) / len(targets),
            "mse": float((guess - truth).square().mean()),
        }


class AnswerMetrics(Metrics):
    """Stretches of tokens, one a window."""

    def reset(self) -> None:
        self.rows = self.exact = 0
        self.overlap = 0.0

    def add(self, predictions: Any, labels: Any) -> None:
        import torch

        (first, last), (start, end) = predictions.unbind(1), labels
        self.rows += len(start)
        self.exact += int(((first == start) & (last == end)).sum())
        shared = (torch.minimum(last, end) - torch.maximum(first, start) + 1).clamp(min=0).double()
        self.overlap += float((2 * shared / (last - first + end - start + 2)).sum())

    def result(self) -> dict[str, float]:
        return {"exact": ratio(self.exact, self.rows), "f1": ratio(self.overlap, self.rows)}


class LanguageMetrics(Metrics):
    """Supervised tokens of the whole set, each counted once."""

    def reset(self) -> None:
        self.loss = self.tokens = self.right = 0.0

    def add(self, predictions: Any, labels: Any) -> None:
        loss, tokens, right = predictions.double().sum(0).tolist()
        self.loss, self.tokens, self.right = self.loss + loss, self.tokens + tokens, self.right + right

    def result(self) -> dict[str, float]:
        loss = ratio(self.loss, self.tokens)
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {"loss": loss, "perplexity": perplexity, "token_accuracy": ratio(self.right, self.tokens)}
