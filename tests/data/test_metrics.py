"""Scores added up batch by batch equal those of well-known libraries over everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction

from tunekit.metrics import MAX_ANSWER_TOKENS, best_spans, metrics
from tunekit.scores import entities, is_bio
from tunekit.task import TASKS, Task


def scores(
    task: str, logits: Any, labels: Any, problem: str | None = None, names: Sequence[str] = (), batch: int = 7
) -> dict[str, float]:
    """The scores of an evaluation in batches; the same object then evaluates again and must say the same."""
    compute, preprocess = metrics(Task.named(task), problem, names)
    size = len(labels[0] if isinstance(labels, tuple) else labels)

    def part(value: Any, i: int) -> Any:
        return tuple(v[i : i + batch] for v in value) if isinstance(value, tuple) else value[i : i + batch]

    found = []
    for _ in range(2):
        for i in range(0, size, batch):
            reduced = preprocess(part(logits, i), part(labels, i))
            last = i + batch >= size
            answer = compute(EvalPrediction(reduced, part(labels, i)), compute_result=last)
            assert last or answer == {}
        found.append(answer)
    assert found[0] == found[1]
    assert all(type(v) is float for v in answer.values())
    return answer


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("classes", [2, 6])
def test_one_class_a_row(classes: int) -> None:
    logits, labels = torch.randn(40, classes), torch.randint(0, classes, (40,))
    logits[torch.arange(40), labels] += 1
    found, guess = scores("sequence-classification", logits, labels, "single_label_classification"), logits.argmax(1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, guess))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(labels, guess, average="macro"))
    assert found["matthews"] == pytest.approx(sk.matthews_corrcoef(labels, guess))


def test_several_classes_a_row() -> None:
    logits, labels = torch.randn(40, 4), (torch.rand(40, 4) > 0.6).float()
    found = scores("sequence-classification", logits, labels, "multi_label_classification")
    assert found["f1_micro"] == pytest.approx(sk.f1_score(labels, logits > 0, average="micro"))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(labels, logits > 0, average="macro"))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, logits > 0))


def test_numbers() -> None:
    truth = torch.randn(40).round(decimals=1)  # with equal ranks
    guess = truth + torch.randn(40)
    found = scores("sequence-classification", guess[:, None], truth, "regression")
    assert found["mse"] == pytest.approx(sk.mean_squared_error(truth, guess), rel=1e-5)
    assert found["pearson"] == pytest.approx(stats.pearsonr(truth, guess).statistic, rel=1e-5)
    assert found["spearman"] == pytest.approx(stats.spearmanr(truth, guess).statistic, rel=1e-5)


def test_several_numbers_a_row_are_averaged() -> None:
    guess, truth = torch.randn(40, 2), torch.randn(40, 2)
    found = scores("sequence-classification", guess, truth, "regression")
    each = [stats.spearmanr(guess[:, i], truth[:, i]).statistic for i in range(2)]
    assert found["spearman"] == pytest.approx(sum(each) / 2)


def test_scores_that_are_not_defined_are_zero() -> None:
    same = torch.ones(8, 1)
    found = scores("sequence-classification", same, torch.randn(8), "regression")
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
    one = scores("sequence-classification", torch.tensor([[1.0, 0.0]] * 8), torch.zeros(8, dtype=torch.long))
    assert (one["accuracy"], one["matthews"]) == (1.0, 0.0)


def test_choices() -> None:
    logits, labels = torch.randn(40, 3), torch.randint(0, 3, (40,))
    assert scores("multiple-choice", logits, labels) == {
        "accuracy": float((logits.argmax(1) == labels).double().mean())
    }


# --------------------------------------------------------------------------------------------------------------- tokens
def test_entities_by_the_conll_rule() -> None:
    names = ("O", "B-x", "I-x", "B-y", "I-y")
    truth = [["B-x", "I-x", "O", "B-y"], ["O", "B-x", "B-x", "I-x"], ["B-y", "I-y", "I-y", "O"]]
    guess = [["B-x", "I-x", "O", "B-x"], ["O", "B-x", "I-x", "I-x"], ["B-y", "I-y", "I-y", "B-x"]]
    # Right: x(0,1) of row 0, y(0,2) of row 2. Predicted 5, actual 5.
    labels = torch.tensor([[names.index(t) for t in row] for row in truth])
    ids = torch.tensor([[names.index(t) for t in row] for row in guess])
    found = scores("token-classification", torch.nn.functional.one_hot(ids, 5).float(), labels, names=names, batch=2)
    assert (found["precision"], found["recall"], found["f1"]) == (2 / 5, 2 / 5, pytest.approx(0.4))
    assert found["accuracy"] == pytest.approx(9 / 12)


def test_what_is_not_labelled_does_not_count() -> None:
    names = ("O", "B-x", "I-x")
    labels = torch.tensor([[-100, 1, -100, 2, -100], [-100, 0, 1, -100, -100]])
    ids = torch.tensor([[1, 1, 0, 2, 1], [2, 0, 1, 2, 2]])
    found = scores("token-classification", torch.nn.functional.one_hot(ids, 3).float(), labels, names=names, batch=1)
    assert (found["f1"], found["accuracy"]) == (1.0, 1.0)


def test_tags_that_mark_no_stretches_are_scored_one_by_one() -> None:
    names = ("NOUN", "VERB", "X")
    logits, labels = torch.randn(10, 9, 3), torch.randint(0, 3, (10, 9))
    labels[:, 5:] = -100
    found = scores("token-classification", logits, labels, names=names)
    kept = labels != -100
    truth, guess = labels[kept], logits.argmax(-1)[kept]
    assert found["f1"] == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-x I-x I-x", [("x", 0, 2)]),
        ("I-x I-x O I-x", [("x", 0, 1), ("x", 3, 3)]),
        ("B-x B-x", [("x", 0, 0), ("x", 1, 1)]),
        ("B-x I-y", [("x", 0, 0), ("y", 1, 1)]),
        ("B-x I-x E-x S-x", [("x", 0, 2), ("x", 3, 3)]),
        ("E-x I-x", [("x", 0, 0), ("x", 1, 1)]),
        ("U-x L-x B-x L-x I-x", [("x", 0, 0), ("x", 1, 1), ("x", 2, 3), ("x", 4, 4)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 1)]),
    ],
)
def test_where_entities_begin_and_end(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == found


def test_tags_are_recognised_by_their_form() -> None:
    assert is_bio(("O", "B-a", "I-a"))
    assert not is_bio(("O",))
    assert not is_bio(("0", "1"))
    assert not is_bio(("B-a", "NOUN"))


# -------------------------------------------------------------------------------------------------------------- answers
def test_the_best_answer_ends_after_it_begins_and_is_not_long() -> None:
    start, end = torch.randn(20, 80), torch.randn(20, 80)
    found = best_spans((start, end), None)
    for row in range(20):
        every = {
            (s, e): float(start[row, s] + end[row, e])
            for s in range(80)
            for e in range(s, min(80, s + MAX_ANSWER_TOKENS))
        }
        assert tuple(found[row].tolist()) == max(every, key=lambda k: every[k])


def test_answers_are_scored_by_place_and_overlap() -> None:
    def one_hot(places: list[int]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(places), 20).float()

    logits = (one_hot([3, 5, 0]), one_hot([6, 5, 0]))
    labels = (torch.tensor([3, 9, 0]), torch.tensor([4, 9, 0]))
    found = scores("question-answering", logits, labels, batch=2)
    # Row 0 shares 2 of 4 predicted and 2 actual tokens; row 1 none; row 2 says rightly that there is no answer.
    assert found == {"exact": pytest.approx(1 / 3), "f1": pytest.approx((2 * 2 / 6 + 0 + 1) / 3)}


# ------------------------------------------------------------------------------------------------------ language models
@pytest.mark.parametrize("task", ["causal-lm", "seq2seq"])
def test_language_models_by_token(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = torch.randn(10, 9, 30), torch.randint(0, 30, (10, 9))
    for i in range(10):
        labels[i, : i % 9] = -100
    shifted = (logits[:, :-1], labels[:, 1:]) if task == "causal-lm" else (logits, labels)
    expected = cross_entropy(shifted[0].flatten(0, 1), shifted[1].flatten())
    kept = shifted[1] != -100
    for elements in (2**22, 31):
        monkeypatch.setattr("tunekit.metrics._CHUNK_ELEMENTS", elements)
        found = scores(task, logits, labels, batch=3)
        assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
        assert found["perplexity"] == pytest.approx(float(expected.exp()), rel=1e-5)
        assert found["token_accuracy"] == pytest.approx(
            float((shifted[0].argmax(-1) == shifted[1])[kept].double().mean())
        )


def test_more_outputs_than_logits_do_no_harm() -> None:
    logits, labels = torch.randn(4, 5, 30), torch.randint(0, 30, (4, 5))
    assert scores("seq2seq", (logits, torch.randn(4, 5, 8)), labels, batch=2) == scores(
        "seq2seq", logits, labels, batch=2
    )


def test_logits_of_soft_prompts_in_front_do_not_count() -> None:
    logits, labels = torch.randn(4, 5, 30), torch.randint(0, 30, (4, 5))
    longer = torch.cat([torch.randn(4, 3, 30), logits], 1)
    assert scores("causal-lm", longer, labels) == scores("causal-lm", logits, labels)


def test_what_is_kept_of_a_batch_does_not_grow_with_length_or_vocabulary() -> None:
    _, preprocess = metrics(Task.named("causal-lm"))
    assert preprocess(torch.randn(4, 50, 300), torch.randint(0, 300, (4, 50))).shape == (4, 3)
    _, preprocess = metrics(Task.named("question-answering"))
    assert preprocess((torch.randn(4, 50), torch.randn(4, 50)), None).shape == (4, 2)
    _, preprocess = metrics(Task.named("token-classification"))
    assert preprocess(torch.randn(4, 50, 9), None).shape == (4, 50)


# -------------------------------------------------------------------------------------------------------------- manners
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_prediction_without_labels_gives_something_to_read(task: Task) -> None:
    logits: Any = torch.randn(4, 6, 9)
    if task.name == "question-answering":
        logits = (torch.randn(4, 6), torch.randn(4, 6))
    assert len(metrics(task)[1](logits, None)) == 4


def test_arrays_at_the_end_are_scored_as_tensors_in_batches_are() -> None:
    compute, _ = metrics(Task.named("sequence-classification"))
    logits, labels = torch.randn(9, 3), torch.randint(0, 3, (9,))
    at_once = compute(EvalPrediction(logits.numpy(), np.asarray(labels)))
    assert at_once == scores("sequence-classification", logits, labels, batch=2)


def test_half_precision_logits_are_scored() -> None:
    logits, labels = torch.randn(4, 5, 30), torch.randint(0, 30, (4, 5))
    found = scores("causal-lm", logits.bfloat16(), labels)
    assert found["loss"] == pytest.approx(scores("causal-lm", logits, labels)["loss"], abs=0.02)


def test_an_interrupted_evaluation_is_forgotten_by_reset() -> None:
    compute, _ = metrics(Task.named("multiple-choice"))
    wrong = EvalPrediction(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    right = EvalPrediction(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    compute(wrong, compute_result=False)
    compute.reset()
    assert compute(right, compute_result=True) == {"accuracy": 1.0}
