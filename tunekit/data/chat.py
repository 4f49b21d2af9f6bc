"""Conversations to text by the tokenizer's chat template, with the stretches that the assistant wrote."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tunekit.errors import InvalidError, UnsupportedError
from tunekit.finding import error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
}
"""What ShareGPT-like rows call the speakers; other names stay."""


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer can write a conversation down."""
    return bool(getattr(tokenizer, "chat_template", None))


def as_messages(value: Any, role: str) -> list[dict[str, Any]]:
    """Messages with `role` and `content`: a text becomes one message of `role`, ShareGPT's names become the usual ones.

    Example:
        >>> as_messages("hi", "user")
        [{'role': 'user', 'content': 'hi'}]
        >>> as_messages([{"from": "gpt", "value": "yes"}], "user")
        [{'role': 'assistant', 'content': 'yes'}]
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [_message(m) for m in value]


def refuse_nameless(value: Any, row: int) -> None:
    """Raises `chat-role` where a message does not say who speaks; a text is no list of messages."""
    for i, message in enumerate(() if isinstance(value, str) else value):
        if not message or (message.get("role") is None and message.get("from") is None):
            raise InvalidError(
                error("chat-role", f"message {i} of row {row}", "it does not say who speaks", 'give every message a `role`, such as "user" or "assistant"')
            )  # fmt: skip


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """One message without what is null: templates write nulls out."""
    if message.get("from") is not None and "role" not in message:
        return {"role": _ROLES.get(message["from"], message["from"]), "content": message["value"]}
    return {k: v for k, v in message.items() if v is not None}


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], first: int, row: int
) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as text, and the stretches of characters that the assistant writes.

    By the template's own `{% generation %}` marks where it has them. Otherwise what an assistant's message adds to the
    conversation before it, which ends as if the assistant were asked: so the loss sees exactly what has to be generated.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The conversation.
        first: Index of the first message that counts.
        row: The row's number, for errors.

    Raises:
        InvalidError: `chat-template-refuses`: the template does not take this conversation.
        UnsupportedError: `chat-template-prefix`: the template writes earlier messages anew when later ones follow, so
            that what has to be generated cannot be told.
    """
    if not messages:
        raise InvalidError(
            error("chat-empty", f"row {row} has no messages", "there is nothing to learn", "drop the row")
        )
    if _GENERATION.search(_template(tokenizer)):
        return _by_marks(tokenizer, messages, first, row)
    text = _render(tokenizer, messages, False, row)
    spans, end = [], 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i < first:
            continue
        before = _render(tokenizer, messages[:i], True, row) if i else ""
        upto = _render(tokenizer, messages[: i + 1], False, row) if i + 1 < len(messages) else text
        if not (text.startswith(before) and text.startswith(upto) and end <= len(before) < len(upto)):
            raise UnsupportedError(_rewrites(i, row))
        spans.append((len(before), end := len(upto)))
    return text, spans


def _rewrites(i: int, row: int) -> Any:
    return error(
        "chat-template-prefix", f"message {i} of row {row}",
        "the chat template writes earlier messages differently when later ones follow, so what the assistant has to generate cannot be told",
        "give a template with `{% generation %}` marks, or one row for each answer with `prompt` and `completion`",
    )  # fmt: skip


def _by_marks(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], first: int, row: int
) -> tuple[str, list[tuple[int, int]]]:
    """The stretches between the template's own marks, those of the last messages where `first` leaves some out."""
    from transformers.utils.chat_template_utils import render_jinja_template

    render: Any = render_jinja_template
    try:
        texts, marks = render(
            conversations=[messages],
            chat_template=_template(tokenizer),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except Exception as e:  # jinja's own errors and whatever a template raises
        raise InvalidError(_refuses(e, row)) from None
    counted = sum(m["role"] == "assistant" for m in messages[first:])
    return texts[0], list(marks[0])[-counted:] if counted else []


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.get_chat_template()


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], ask: bool, row: int) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
    except Exception as e:  # jinja's own errors and whatever a template raises
        raise InvalidError(_refuses(e, row)) from None


def _refuses(e: Exception, row: int) -> Any:
    reason = " ".join(str(e).split())[:200]
    return error(
        "chat-template-refuses",
        f"the conversation of row {row}",
        f"the chat template says: {reason}",
        "bring the roles into the order that the template wants",
    )
