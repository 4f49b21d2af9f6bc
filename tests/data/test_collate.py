"""Batches are padded on the tokenizer's side, labels with -100, and the collator travels to other processes."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tunekit.data.collate import collator, ensure_pad_token
from tunekit.data.columns import resolve
from tunekit.data.encode import encode
from tunekit.errors import UnsupportedError
from tunekit.task import TASKS, Task

DATA: dict[str, dict[str, list[Any]]] = {
    "causal-lm": {"prompt": ["a b c", "a"], "completion": [" d", " e"]},
    "seq2seq": {"source": ["a b c", "a"], "target": ["d", "e f g"]},
    "sequence-classification": {"text": ["a b c", "a"], "label": [0, 1]},
    "token-classification": {"tokens": [["a", "b", "c"], ["a"]], "tags": [["O", "B-x", "O"], ["O"]]},
    "question-answering": {"question": ["a", "a"], "context": ["b c d", "c"], "answers": ["c", "c"]},
    "multiple-choice": {"text": ["a b", "a"], "choices": [["c", "d e"], ["d", "e f g"]], "label": [0, 1]},
}


def features(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    rows = Dataset.from_dict(DATA[task.name])
    return list(encode(rows, task, tokenizer, columns=resolve(rows, None, task)).dataset)


def sided(tokenizer: PreTrainedTokenizerBase, side: str) -> PreTrainedTokenizerBase:
    turned = copy.deepcopy(tokenizer)
    turned.padding_side = side
    return turned


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_padding_hides_itself_and_leaves_the_rows_as_they_were(
    task: Task, side: str, minilm: PreTrainedTokenizerBase
) -> None:
    tokenizer = sided(minilm, side)
    rows = features(task, tokenizer)
    batch = collator(task, tokenizer)(rows)
    for i, row in enumerate(rows):
        mask = batch["attention_mask"][i].bool()
        nested = row["input_ids"] if task.name == "multiple-choice" else [row["input_ids"]]
        assert [x for part in nested for x in part] == batch["input_ids"][i][mask].tolist()
        assert set(batch["input_ids"][i][~mask].tolist()) <= {tokenizer.pad_token_id}
        assert batch["input_ids"].dtype == torch.int64
        if task.name in ("causal-lm", "token-classification"):
            assert batch["labels"][i][mask].tolist() == row["labels"]
            assert set(batch["labels"][i][~mask].tolist()) <= {-100}
        elif task.name == "seq2seq":
            width = len(row["labels"])
            assert batch["labels"][i][:width].tolist() == row["labels"]
            assert set(batch["labels"][i][width:].tolist()) <= {-100}
        elif task.name == "question-answering":
            assert batch["input_ids"][i][batch["start_positions"][i]] == row["input_ids"][row["start_positions"]]
            assert batch["start_positions"][i] == mask.nonzero()[row["start_positions"], 0]
            assert batch["end_positions"][i] == mask.nonzero()[row["end_positions"], 0]
        else:
            assert batch["labels"][i] == row["labels"]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_lengths_are_rounded_up_where_asked(task: Task, minilm: PreTrainedTokenizerBase) -> None:
    batch = collator(task, minilm, pad_to_multiple_of=8)(features(task, minilm))
    assert batch["input_ids"].shape[-1] % 8 == 0


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_other_columns_stay_behind_and_rows_are_not_changed(task: Task, minilm: PreTrainedTokenizerBase) -> None:
    rows = [{**row, "text": "x", "id": 7, "more": None, "length": [1, 2]} for row in features(task, minilm)]
    before = copy.deepcopy(rows)
    batch = collator(task, minilm)(rows)
    assert rows == before
    assert set(batch) == set(features(task, minilm)[0])
    assert all(isinstance(v, torch.Tensor) for v in batch.values())


def test_targets_of_the_loss_have_its_type(minilm: PreTrainedTokenizerBase) -> None:
    task = Task.named("sequence-classification")
    for labels in ([1.5, 2.0], [["x"], ["x", "y"]]):
        rows = Dataset.from_dict({"text": ["a", "b"], "label": labels})
        made = encode(rows, task, minilm, columns={"text": "text", "label": "label"}).dataset
        assert collator(task, minilm)(list(made))["labels"].dtype == torch.float32


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_a_pickled_collator_gives_the_same_batch(task: Task, minilm: PreTrainedTokenizerBase) -> None:
    rows, collate = features(task, minilm), collator(task, minilm)
    for name, value in pickle.loads(pickle.dumps(collate))(rows).items():
        assert torch.equal(value, collate(rows)[name])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on any fork
def test_workers_of_a_data_loader_use_it(minilm: PreTrainedTokenizerBase) -> None:
    task = Task.named("causal-lm")
    loader = torch.utils.data.DataLoader(
        features(task, minilm),  # type: ignore[arg-type]
        batch_size=2,
        num_workers=1,
        collate_fn=collator(task, minilm),
    )
    assert next(iter(loader))["input_ids"].shape[0] == 2


def test_rows_without_labels_make_a_batch(minilm: PreTrainedTokenizerBase) -> None:
    for task in ("causal-lm", "seq2seq", "sequence-classification", "token-classification", "question-answering"):
        batch = collator(Task.named(task), minilm)([{"input_ids": [1, 2]}, {"input_ids": [3]}])
        assert batch["input_ids"].tolist() == [[1, 2], [3, 0]]
        assert "labels" not in batch
    batch = collator(Task.named("multiple-choice"), minilm)([{"input_ids": [[1, 2], [3]]}])
    assert batch["input_ids"].tolist() == [[[1, 2], [3, 0]]]
    assert "labels" not in batch


# ------------------------------------------------------------------------------------------------------- padding tokens
def test_a_tokenizer_with_a_padding_token_is_used_as_it_is(minilm: PreTrainedTokenizerBase) -> None:
    assert ensure_pad_token(minilm) is minilm


def test_a_tokenizer_without_one_is_copied_never_changed(bpe: PreTrainedTokenizerBase) -> None:
    padded = ensure_pad_token(bpe)
    assert padded.pad_token == "<eos>"
    assert bpe.pad_token is None
    assert len(padded) == len(bpe)
    batch = collator(Task.named("causal-lm"), bpe)(features(Task.named("causal-lm"), bpe))
    # The end of the row is learnt although it looks like padding.
    last = batch["attention_mask"].sum(1) - 1
    assert batch["labels"][torch.arange(2), last].tolist() == [bpe.eos_token_id] * 2
    assert bpe.pad_token is None


def test_the_model_s_own_padding_token_comes_first(bpe: PreTrainedTokenizerBase) -> None:
    config: Any = SimpleNamespace(pad_token_id=bpe.convert_tokens_to_ids("<|im_start|>"))
    assert ensure_pad_token(bpe, config).pad_token == "<|im_start|>"
    for useless in (None, -1, 10**6):
        assert ensure_pad_token(bpe, SimpleNamespace(pad_token_id=useless)).pad_token == "<eos>"  # type: ignore[arg-type]


def test_a_vocabulary_with_nothing_to_pad_with_is_refused(bpe: PreTrainedTokenizerBase) -> None:
    bare = copy.deepcopy(bpe)
    bare.eos_token = None
    with pytest.raises(UnsupportedError) as caught:
        ensure_pad_token(bare)
    assert caught.value.codes == ("pad-token-missing",)
