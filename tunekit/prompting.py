"""Prompts without training: scores of rows, calibration without content, and label words found from a few examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.data.collate import collator, ensure_pad_token
from tunekit.data.encode import encode as plain_encode
from tunekit.data.labels import encode_labels, label_names
from tunekit.data.read import read
from tunekit.errors import InvalidError
from tunekit.finding import error
from tunekit.objectives.prompt_learning import PromptLearning
from tunekit.structure import side_of, task_model
from tunekit.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

_TASK = Task.named("sequence-classification")
CONTENT_FREE = ("N/A", "", "[MASK]")
"""Texts that say nothing, as Zhao et al. (2021) chose them."""


def prompt_scores(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    objective: PromptLearning,
    rows: Any,
    *,
    examples: Any = None,
    columns: Mapping[str, str] | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
) -> torch.Tensor:
    """Log-probabilities of the classes for rows: zero-shot before training, the model's answers after it.

    (rows, classes) in the verbalizer's order, on the host.

    Args:
        model: A masked, causal or seq2seq language model, with or without a method on it.
        tokenizer: The model's.
        objective: Templates and label words; with `prior` the scores are calibrated.
        rows: Rows with the templates' columns: a Dataset, a list of dicts, a path. Labels are not looked at.
        examples: Labelled rows for demonstrations.
        columns: Our column names to the data's, where templates use ours.
        max_length: Longest prompt in tokens; None: what tokenizer and model allow.
        batch_size: Rows at the same time.

    Raises:
        InvalidError: what `PromptLearning.encode` refuses.

    Example:
        >>> scores = tunekit.prompt_scores(model, tokenizer, objective, [{"text": "A joy."}])    # doctest: +SKIP
        >>> list(objective.verbalizer)[scores[0].argmax()]                                       # doctest: +SKIP
        'positive'
    """
    import torch

    found = [
        objective.answer(model, batch)["logits"].float().cpu()
        for batch in _batches(model, tokenizer, objective, rows, examples, columns, max_length, batch_size)
    ]
    return torch.cat(found)


def calibrate_prompt(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    objective: PromptLearning,
    *,
    content_free: Sequence[str] = CONTENT_FREE,
    examples: Any = None,
    columns: Mapping[str, str] | None = None,
    max_length: int | None = None,
) -> PromptLearning:
    """The objective with a `prior`: what the model says of texts without content is taken off its answers.

    Args:
        model: The model.
        tokenizer: The model's.
        objective: Templates and label words.
        content_free: Texts that say nothing; each stands in every field. Some unlabelled texts of the task in their place
            take off what the model says of them on average (batch calibration), where there is one field.
        examples: Labelled rows for demonstrations.
        columns: Our column names to the data's.
        max_length: Longest prompt in tokens.

    References:
        Zhao, Wallace, Feng, Klein, Singh, "Calibrate Before Use: Improving Few-Shot Performance of Language Models", 2021;
        Zhou et al., "Batch Calibration: Rethinking Calibration for In-Context Learning and Prompt Engineering", 2024.

    Example:
        >>> calibrated = tunekit.calibrate_prompt(model, tokenizer, objective)                    # doctest: +SKIP
        >>> scores = tunekit.prompt_scores(model, tokenizer, calibrated, rows)                    # doctest: +SKIP
    """
    import torch

    plain = dataclasses.replace(objective, prior={})
    fields = [plain_field(f, columns) for f in plain.fields]
    rows = [dict.fromkeys(fields, text) for text in content_free]
    found = [
        plain.template_scores(model, batch).float().cpu().exp()
        for batch in _batches(model, tokenizer, plain, rows, examples, columns, max_length, 16)
    ]
    mean = torch.cat(found).mean(0).log()  # (templates, classes)
    prior = {name: tuple(mean[:, i].tolist()) for i, name in enumerate(objective.verbalizer)}
    return dataclasses.replace(objective, prior=prior)


def search_label_words(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    templates: Sequence[str],
    examples: Any,
    *,
    columns: Mapping[str, str] | None = None,
    words: int = 1,
    candidates: int = 1000,
    max_length: int | None = None,
    batch_size: int = 16,
) -> dict[str, tuple[str, ...]]:
    """Label words for every class from a few labelled rows: a `verbalizer`.

    A word is good for a class where the model finds it likelier in the class's blanks than in the other classes', in the
    mean of log-probabilities: a likelihood ratio, so that words that are always likely do not win. Only whole words of
    one token are looked at, and of these the class's likeliest.

    Args:
        model: The model, before training.
        tokenizer: The model's.
        templates: As those of `PromptLearning`.
        examples: Labelled rows, some 8 to 32 a class.
        columns: Our column names to the data's.
        words: So many words a class.
        candidates: So many of a class's likeliest tokens are compared.
        max_length: Longest prompt in tokens.
        batch_size: Rows at the same time.

    Raises:
        InvalidError: `prompt-search`, where no word is left for a class; and what the templates are refused for.

    References:
        Schick, Schmid, Schuetze, "Automatically Identifying Words That Can Serve as Labels for Few-Shot Text
        Classification" (PETAL), 2020.

    Example:
        >>> verbalizer = tunekit.search_label_words(model, tokenizer, ("{text} It was {mask}.",), rows)    # doctest: +SKIP
    """
    import torch

    held = read(examples).train
    known = {**(columns or {}), "label": (columns or {}).get("label", "label")}
    names = label_names(held, _TASK, known)
    labels = torch.tensor(encode_labels(list(held[known["label"]]), names, "single_label_classification"))
    # Any word serves while the blanks alone are asked about.
    filler = _whole_words(tokenizer, range(len(tokenizer)), templates, side_of(task_model(model).config))
    first = next(filler)
    asking = PromptLearning(templates=tuple(templates), verbalizer={"a": (first[0],), "b": (next(filler)[0],)})
    rows = held.remove_columns([known["label"]])
    said = [
        asking.blanks(model, batch).float().cpu().mean(1)
        for batch in _batches(model, tokenizer, asking, rows, None, columns, max_length, batch_size)
    ]
    scores = torch.cat(said)[:, : len(tokenizer)]
    return _best_words(
        scores, labels, names, tokenizer, templates, side_of(task_model(model).config), words, candidates
    )


def _best_words(
    scores: torch.Tensor, labels: torch.Tensor, names: Sequence[str], tokenizer: Any, templates: Sequence[str], side: Any, words: int, candidates: int
) -> dict[str, tuple[str, ...]]:  # fmt: skip
    """The best words of each class, no word twice; classes choose in turn."""
    ranked: list[Iterator[tuple[str, int]]] = []
    for y in range(len(names)):
        own, others = scores[labels == y].mean(0), scores[labels != y].mean(0)
        likely = own.topk(min(candidates, len(own))).indices
        order = likely[(own - others)[likely].argsort(descending=True)].tolist()
        ranked.append(_whole_words(tokenizer, order, templates, side))
    found: list[list[str]] = [[] for _ in names]
    taken: set[str] = set()
    for _ in range(words):
        for y, choices in enumerate(ranked):
            word = next((w for w, _ in choices if w.lower() not in taken), None)
            if word is None:
                raise InvalidError(error("prompt-search", f"class {names[y]!r}", "none of its likeliest tokens is a whole word", "raise `candidates`, or choose words by hand"))  # fmt: skip
            taken.add(word.lower())
            found[y].append(word)
    return {name: tuple(chosen) for name, chosen in zip(names, found, strict=True)}


def _whole_words(tokenizer: Any, ids: Any, templates: Sequence[str], side: Any) -> Iterator[tuple[str, int]]:
    """The tokens that are words of letters and that are themselves in the first template's blank."""
    special = set(tokenizer.all_special_ids)
    for i in ids:
        word = tokenizer.decode([i]).strip()
        if (
            i not in special
            and len(word) > 2
            and word.isalpha()
            and PromptLearning.tokens_in(templates[0], side, tokenizer, word) == (i,)
        ):
            yield word, i


def plain_field(name: str, columns: Mapping[str, str] | None) -> str:
    """The data's column for a template's field.

    Example:
        >>> plain_field("text", {"text": "sentence"}), plain_field("title", None)
        ('sentence', 'title')
    """
    return (columns or {}).get(name, name)


def _batches(
    model: nn.Module, tokenizer: Any, objective: PromptLearning, rows: Any, examples: Any, columns: Mapping[str, str] | None, max_length: int | None, size: int
) -> Iterator[dict[str, torch.Tensor]]:  # fmt: skip
    """Prompts of the rows on the model's device, the model in eval mode and without gradients while they are asked for."""
    import torch

    tokenizer = ensure_pad_token(tokenizer)
    held = read(rows).train
    known = {k: v for k, v in (columns or {}).items() if k != "label"}
    shown = None if examples is None else read(examples).train
    label = (columns or {}).get("label", "label")
    config: Any = task_model(model).config
    made = objective.encode(
        held, _TASK, tokenizer, plain_encode, side=side_of(config), examples=shown if shown is None or label == "label" else shown.rename_column(label, "label"),
        columns=known, max_length=max_length or _longest(config, tokenizer), label_names=tuple(objective.verbalizer),
    ).dataset  # fmt: skip
    collate = collator(_TASK, tokenizer)
    device, was = next(model.parameters()).device, model.training
    plain = dataclasses.replace(objective, masked_lm_weight=0.0)
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(made), size):
                features = [made[i] for i in range(start, min(start + size, len(made)))]
                yield {k: v.to(device) for k, v in plain.collate(features, collate).items()}
    finally:
        model.train(was)


def _longest(config: Any, tokenizer: Any) -> int | None:
    """The longest input that tokenizer and positions allow; None where nothing bounds it."""
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    limits = [n for n in (positions, tokenizer.model_max_length) if isinstance(n, int) and 0 < n < 10**9]
    return min(limits, default=None)
