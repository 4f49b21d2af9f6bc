"""Conversations through the chat template: the loss sees exactly what the assistant has to write."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tunekit.data.columns import resolve
from tunekit.data.encode import Encoded, encode
from tunekit.data.labels import IGNORE
from tunekit.errors import InvalidError, TunekitError, UnsupportedError
from tunekit.task import Task

TASK = Task.named("causal-lm")
TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "what is it ?"},
    {"role": "assistant", "content": "a film"},
    {"role": "user", "content": "good ?"},
    {"role": "assistant", "content": "was it"},
]


def encoded(data: dict[str, Any], tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Encoded:
    rows = Dataset.from_dict(data)
    return encode(rows, TASK, tokenizer, columns=resolve(rows, None, TASK), **settings)


def stretches(tokenizer: PreTrainedTokenizerBase, row: dict[str, list[int]]) -> list[str]:
    """The texts that the loss sees, one for each run of supervised tokens."""
    found: list[list[int]] = []
    before = IGNORE
    for label in row["labels"]:
        if label != IGNORE:
            if before == IGNORE:
                found.append([])
            found[-1].append(label)
        before = label
    return [tokenizer.decode(ids) for ids in found]


@pytest.mark.parametrize("kind", ["chat", "marked"])
def test_every_answer_is_supervised_with_its_end_and_nothing_else(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(kind)
    made = encoded({"messages": [TALK]}, tokenizer)
    row = made.dataset[0]
    assert row["input_ids"] == tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"]
    assert [s.strip() for s in stretches(tokenizer, row)] == ["a film<|im_end|>", "was it<|im_end|>"]
    assert made.findings == ()


def test_marks_agree_with_transformers_own_mask(marked: PreTrainedTokenizerBase) -> None:
    row = encoded({"messages": [TALK]}, marked).dataset[0]
    own = marked.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    assert [int(x != IGNORE) for x in row["labels"]] == list(own["assistant_masks"])


@pytest.mark.parametrize("kind", ["chat", "marked"])
def test_what_is_supervised_begins_where_generation_begins(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(kind)
    template = tokenizer.chat_template.replace("{% endfor %}", "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}") if kind == "marked" else tokenizer.chat_template  # fmt: skip
    asked = tokenizer.apply_chat_template(
        TALK[:2], add_generation_prompt=True, chat_template=template, return_dict=True
    )
    row = encoded({"messages": [TALK[:3]]}, tokenizer).dataset[0]
    assert next(i for i, x in enumerate(row["labels"]) if x != IGNORE) == len(asked["input_ids"])


@pytest.mark.parametrize("kind", ["chat", "marked"])
def test_prompts_and_completions_go_through_the_template(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(kind)
    texts = {"prompt": ["what is it ?"], "completion": ["a film"]}
    lists = {"prompt": [TALK[1:2]], "completion": [TALK[2:3]]}
    instructions = {"instruction": ["what is"], "input": ["it ?"], "output": ["a film"]}
    one, other, third = (encoded(d, tokenizer).dataset[0] for d in (texts, lists, instructions))
    assert one == other
    assert "what is\n\nit ?<|im_end|>" in tokenizer.decode(third["input_ids"])
    assert [s.strip() for s in stretches(tokenizer, one)] == ["a film<|im_end|>"]


@pytest.mark.parametrize("kind", ["chat", "marked"])
def test_answers_inside_a_prompt_are_not_supervised(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(kind)
    row = encoded({"prompt": [TALK[:4]], "completion": [TALK[4:]]}, tokenizer).dataset[0]
    assert [s.strip() for s in stretches(tokenizer, row)] == ["was it<|im_end|>"]


def test_sharegpt_rows_are_conversations_too(chat: PreTrainedTokenizerBase) -> None:
    talk = [{"from": "human", "value": "what is it ?"}, {"from": "gpt", "value": "a film"}]
    assert encoded({"conversations": [talk]}, chat).dataset[0] == encoded({"messages": [TALK[1:3]]}, chat).dataset[0]


def test_keys_that_only_other_rows_have_do_not_reach_the_template(chat: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.deepcopy(chat)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}{% if 'name' in m %} {{ m.name }}{% endif %}: {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"  # fmt: skip
    named = [{"role": "user", "name": "bob", "content": "a"}, {"role": "assistant", "content": "b"}]
    made = encoded({"messages": [TALK[1:3], named]}, tokenizer).dataset
    assert "None" not in tokenizer.decode(made[0]["input_ids"])
    assert "bob" in tokenizer.decode(made[1]["input_ids"])


def test_a_template_that_rewrites_earlier_answers_is_refused(chat: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.deepcopy(chat)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}(thought) {% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(UnsupportedError) as caught:
        encoded({"messages": [TALK]}, tokenizer)
    assert caught.value.codes == ("chat-template-prefix",)
    assert "{% generation %}" in caught.value.findings[0].fix
    # One answer a row is unequivocal.
    row = encoded({"messages": [TALK[:3]]}, tokenizer).dataset[0]
    assert stretches(tokenizer, row) == ["(thought) a film<|im_end|>\n"]


def test_what_a_template_refuses_names_the_row_and_its_reason(chat: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.deepcopy(chat)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + chat.chat_template
    )
    with pytest.raises(InvalidError) as caught:
        encoded({"messages": [TALK[1:], TALK]}, tokenizer)
    assert caught.value.codes == ("chat-template-refuses",)
    assert "row 1" in str(caught.value)
    assert "no system role" in str(caught.value)


def test_a_template_without_an_end_of_turn_is_reported(chat: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.deepcopy(chat)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    made = encoded({"messages": [TALK]}, tokenizer)
    assert [f.code for f in made.findings] == ["rows-no-stop"]


def test_messages_without_a_template_are_refused_with_the_ways_out(bpe: PreTrainedTokenizerBase) -> None:
    data: list[dict[str, Any]] = [{"messages": [TALK]}, {"prompt": [TALK[:2]], "completion": [TALK[2:3]]}]
    for rows in data:
        with pytest.raises(UnsupportedError) as caught:
            encoded(rows, bpe)
        assert caught.value.codes == ("chat-template-missing",)
        assert "tokenizer.chat_template" in str(caught.value)


def test_conversations_in_which_nobody_answers_are_left_out(chat: PreTrainedTokenizerBase) -> None:
    made = encoded({"messages": [TALK, TALK[:2]]}, chat)
    assert len(made.dataset) == 1
    assert [f.code for f in made.findings] == ["rows-unsupervised"]
    with pytest.raises(TunekitError) as caught:
        encoded({"messages": [TALK[:2]]}, chat)
    assert caught.value.codes == ("data-unsupervised",)


@pytest.mark.parametrize("message", [None, {"role": None, "content": "hm"}], ids=str)
def test_a_message_that_does_not_say_who_speaks_is_refused_by_its_row(
    message: Any, chat: PreTrainedTokenizerBase
) -> None:
    for data in ({"messages": [TALK, [message, *TALK]]}, {"prompt": [TALK[:2], [message, *TALK[:2]]], "completion": [TALK[2:3]] * 2}):  # fmt: skip
        with pytest.raises(InvalidError, match="message 0 of row 1") as caught:
            encoded(data, chat)
        assert caught.value.codes == ("chat-role",)
