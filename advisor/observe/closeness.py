"""How close rows are to what a model has seen: the loss that it has on a sample of them before any training."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunekit.finding import Finding, note
from tunekit.task import Task
from tunekit.workload import ModelFacts, Side

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS = 1_500
"""Tokens that are read: the loss of a token varies by some 3 nats, so that their mean is good to a tenth."""
_ROWS = 64
_LONGEST = 256
"""Where rows are cut; a few hundred tokens of context tell a model what it is reading."""
_MASKED = 0.15
"""Share of the tokens that a masked model is asked for, as in its pretraining."""
_CHEAP_PARAMETERS = 300_000_000
"""A live model of up to this size is asked unbidden: about 10^12 operations, seconds on a laptop."""
_AUTO: dict[Side, str] = {"encoder": "MaskedLM", "decoder": "CausalLM", "seq2seq": "Seq2SeqLM"}


class _CannotSay(Exception):
    """Why no loss can be told."""


def own_loss(
    model: ModelFacts,
    live: PreTrainedModel | None,
    asked: bool,
    task: Task,
    rows: datasets.Dataset,
    columns: dict[str, str],
    tokenizer: PreTrainedTokenizerBase | None,
    label_names: tuple[str, ...] = (),
) -> tuple[float | None, tuple[Finding, ...]]:
    """(mean loss in nats a token, what to say about it); (None, ...) where it was not asked for and is not cheap.

    A writer is asked for what it would learn to write, given what stands before; other tasks for the texts themselves, a
    masked model for a share of their tokens. Rows, masks and so the figure are the same in every process. A live model is
    left as it was.

    Args:
        model: What is known of the model.
        live: The model itself, where it is in memory.
        asked: Whether the user wants it; otherwise only a small live model on the CPU is asked.
        task: What the rows are for.
        rows: Training rows.
        columns: Our column names to the data's.
        tokenizer: The model's.
        label_names: Names of the classes.
    """
    if not asked and not (live is not None and _is_cheap(model, live)):
        return None, ()
    try:
        speaker = _speaker(model, live, task)
        if tokenizer is None:
            raise _CannotSay("there is no tokenizer beside it")
        loss, count = _mean_loss(
            speaker, model.side, _sequences(task, rows, columns, tokenizer, label_names), tokenizer
        )
    except _CannotSay as e:
        seen = "how close the rows are to what the model has seen is not known"
        return None, (note("own-loss-unknown", seen, str(e), "pass `own_loss=` as a number, or leave it out"),) * asked
    share = loss / math.log(max(model.vocab_size, 2))
    seen = (
        f"before any training the model loses {loss:.2f} nats a token on these rows, {share:.0%} of what guessing loses"
    )
    return loss, (
        note("own-loss", seen, f"measured on {count:,} tokens; the less, the closer they are to what it has seen"),
    )


def _is_cheap(model: ModelFacts, live: PreTrainedModel) -> bool:
    return model.num_parameters <= _CHEAP_PARAMETERS and all(p.device.type == "cpu" for p in live.parameters())


def _speaker(model: ModelFacts, live: PreTrainedModel | None, task: Task) -> PreTrainedModel:
    """The model with the head by which it says words.

    Raises:
        _CannotSay: it has none, or its weights are not at hand.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    kind = _AUTO[model.side]
    if model.side == "seq2seq" and task.name != "seq2seq":
        raise _CannotSay("an encoder-decoder says nothing of a text alone")
    if live is not None:
        key = {"MaskedLM": "MASKED_LM", "CausalLM": "CAUSAL_LM", "Seq2SeqLM": "SEQ_TO_SEQ_CAUSAL_LM"}[kind]
        if type(live).__name__ not in getattr(modeling_auto, f"MODEL_FOR_{key}_MAPPING_NAMES").values():
            raise _CannotSay(f"`{type(live).__name__}` has no head that says words")
        return live
    if not model.has_weights:
        raise _CannotSay("its weights are not at hand")
    try:
        loaded, info = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
            model.name, revision=model.revision, dtype="auto", output_loading_info=True, trust_remote_code=False
        )
    except Exception as e:
        raise _CannotSay(f"its weights cannot be loaded ({' '.join(str(e).split())[:120]})") from None
    if info["missing_keys"]:
        raise _CannotSay("its weights hold no head that says words")
    return loaded


def _sequences(
    task: Task,
    rows: datasets.Dataset,
    columns: dict[str, str],
    tokenizer: PreTrainedTokenizerBase,
    label_names: tuple[str, ...],
) -> Iterator[tuple[list[int], list[int]]]:
    """(token ids, labels) of a sample of rows, encoded as for training, in a fixed random order."""
    from tunekit.data.encode import encode

    picked = random.Random(0).sample(range(len(rows)), min(_ROWS, len(rows)))
    made = encode(
        rows.select(picked), task, tokenizer, columns=columns, max_length=_LONGEST, label_names=label_names
    ).dataset
    for row in made:
        ids, labels = row["input_ids"], row.get("labels")
        if ids and isinstance(ids[0], list):
            ids = ids[0]
        yield list(ids), list(labels) if not task.has_head else list(ids)


def _mean_loss(
    model: PreTrainedModel,
    side: Side,
    sequences: Iterator[tuple[list[int], list[int]]],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[float, int]:
    """(mean loss of a token, tokens asked for) over about `_TOKENS` tokens read, one row at a time, so without padding.

    Raises:
        _CannotSay: no row has a token to ask for.
    """
    import torch

    training, lost, asked, read = model.training, 0.0, 0, 0
    model.eval()
    try:
        with torch.inference_mode():
            for ids, labels in sequences:
                if read >= _TOKENS:
                    break
                read += len(ids)
                losses = _losses(model, side, ids, labels, tokenizer)
                lost, asked = lost + float(losses.sum()), asked + len(losses)
    finally:
        model.train(training)
    if not asked or not math.isfinite(lost):
        raise _CannotSay("no sampled row has a token to ask for" if not asked else "its loss is no number")
    return lost / asked, asked


def _losses(
    model: PreTrainedModel, side: Side, ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor:
    """The loss of each token that is asked for in one row."""
    import torch
    from torch.nn.functional import cross_entropy

    given = torch.tensor([ids], device=model.device)
    if side == "encoder":
        hidden = _hidden(ids, tokenizer)
        masked = given.clone()
        masked[0, hidden] = tokenizer.mask_token_id
        logits = model(input_ids=masked).logits[0, hidden]
        return cross_entropy(logits.float(), given[0, hidden], reduction="none")
    answers = torch.tensor(labels, device=model.device)
    if side == "seq2seq":
        logits = model(input_ids=given, labels=answers[None]).logits[0]
    else:
        logits, answers = model(input_ids=given).logits[0, :-1], answers[1:]
    kept = answers != -100
    return cross_entropy(logits[kept].float(), answers[kept], reduction="none")


def _hidden(ids: list[int], tokenizer: Any) -> list[int]:
    """Positions to mask: a share of those that hold no special token, at least one of them.

    Raises:
        _CannotSay: the tokenizer has no mask.
    """
    if tokenizer.mask_token_id is None:
        raise _CannotSay("its tokenizer has no mask")
    special = set(tokenizer.all_special_ids)
    words = [i for i, token in enumerate(ids) if token not in special]
    drawn = (
        random.Random(len(ids) * 1_000_003 + sum(ids)).sample(words, max(1, round(_MASKED * len(words))))
        if words
        else []
    )
    return sorted(drawn)
