"""Conversations in the shapes that people keep them in, as messages of system, user and assistant.

OpenAI: {"messages": [{"role", "content"}]}; ShareGPT: {"conversations": [{"from", "value"}]};
Alpaca: {"instruction", "input", "output", "system"}; preferences: {"prompt", "chosen", "rejected"}.
"""

from typing import Any, NoReturn

from model.messages import ROLES, Message

_SHARE_GPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}


class BadConversation(ValueError):
    """A row is no conversation; the message says why, in one clause."""


def _refuse(reason: str) -> NoReturn:
    """Refuse a row. The reason is written to a result, so its wording is code: it may not be the argument of a `raise`."""
    raise BadConversation(reason)


def _content(value: Any, position: int) -> str:
    """A message's text; OpenAI also has it in parts."""
    if isinstance(value, list):
        kinds = {str(part.get("type")) if isinstance(part, dict) else type(part).__name__ for part in value}
        if kinds - {"text"}:
            _refuse(
                f"message {position} has a part of type {sorted(kinds - {'text'})[0]!r}, and can have text only"
            )
        value = "".join(str(part.get("text", "")) for part in value)
    if not isinstance(value, str):
        _refuse(f"the content of message {position} is {type(value).__name__}, not text")
    if not value.strip():
        _refuse(f"message {position} is empty")
    return value


def _messages(values: Any, role_field: str, content_field: str, roles: dict[str, str]) -> list[Message]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        _refuse("its messages are not a list of objects")
    messages = []
    for position, value in enumerate(values, 1):
        role = value.get(role_field)
        if not isinstance(role, str) or role not in roles:
            _refuse(
                f"message {position} has the role {role!r}, and can have {', '.join(dict.fromkeys(roles))}"
            )
        messages.append({"role": roles[role], "content": _content(value.get(content_field), position)})
    return messages


def _check(messages: list[Message]) -> list[Message]:
    late = next((i for i, message in enumerate(messages, 1) if message["role"] == "system" and i > 1), None)
    if late:
        _refuse(f"message {late} is of the system, which speaks first or not at all")
    if not any(message["role"] == "assistant" for message in messages):
        _refuse("it has no turn of the assistant")
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    if not any(message["role"] == "user" for message in messages[:last]):
        _refuse("it has no turn of the user before the assistant's last")
    return messages


def messages_of(value: Any) -> list[Message]:
    """The messages of a row in any of the shapes.

    Raises:
        BadConversation: if it is in none of them, has no turn of the assistant or none of the user
            before it, an empty message, an unknown role, or a system message that is not the first.
    """
    if not isinstance(value, dict):
        _refuse("it is not an object with fields")
    if "messages" in value:
        return _check(_messages(value["messages"], "role", "content", {role: role for role in ROLES}))
    if "conversations" in value:
        return _check(_messages(value["conversations"], "from", "value", _SHARE_GPT))
    if "instruction" in value and "output" in value:
        question = [value["instruction"], *([value["input"]] if value.get("input") else [])]
        system = [{"role": "system", "content": value["system"]}] if value.get("system") else []
        turns = [
            *system,
            {"role": "user", "content": "\n\n".join(map(str, question))},
            {"role": "assistant", "content": value["output"]},
        ]
        return _check(_messages(turns, "role", "content", {role: role for role in ROLES}))
    _refuse("it has none of the fields messages, conversations, or instruction with output")


def preference_of(value: Any) -> tuple[list[Message], list[Message]]:
    """The chosen and the rejected conversation of a row; they differ in the last message only.

    Raises:
        BadConversation: see `messages_of`; also if the two are equal.
    """
    if not isinstance(value, dict) or "chosen" not in value or "rejected" not in value:
        _refuse("it lacks the fields chosen and rejected")
    before: list[Any] = value.get("prompt", [])  # type: ignore[assignment]
    if isinstance(before, str):
        before = [{"role": "user", "content": before}]
    sides = []
    for name in ("chosen", "rejected"):
        side = value[name]
        turns = [{"role": "assistant", "content": side}] if isinstance(side, str) else side
        if not isinstance(turns, list) or not isinstance(before, list):
            _refuse(f"{name} is {type(side).__name__}, not text or a list of messages")
        sides.append(_check(_messages([*before, *turns], "role", "content", {role: role for role in ROLES})))
    chosen, rejected = sides
    if chosen[:-1] == rejected[:-1] and chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        _refuse("chosen and rejected are equal")
    if chosen[:-1] != rejected[:-1] or {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"}:
        _refuse("chosen and rejected do not differ in the assistant's last turn alone")
    return chosen, rejected


def plain_text(messages: list[Message]) -> str:
    """The contents as one text: for finding benchmark items and repetitions."""
    return "\n\n".join(message["content"] for message in messages)
