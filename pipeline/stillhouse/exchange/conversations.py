"""Convert the turns of a conversation, as other projects write them, to a prompt and its answer.

The last turn must be the assistant's: it is the answer, and all turns before it are the prompt. A conversation that a
dataset cannot hold (tool calls, images, no text) is left out with a reason, never silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from stillhouse.dataset.columns import MESSAGES
from stillhouse.errors import UsageError
from stillhouse.exchange.base import ImportedAnswer, SkippedRow, SourceLine
from stillhouse.records import Message, Prompt, Role, finish_reason_of
from stillhouse.text import short_quote

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",  # the name in the API of reasoning models
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_TOOLS = {"tool", "function", "function_call", "function_response", "observation", "tool_call", "tool_response"}


def parse_conversation(
    turns: Any, place: SourceLine, *, role: str = "role", content: str = "content", finish_reason: Any = None
) -> ImportedAnswer | SkippedRow:
    """Split a conversation into its prompt and its last turn, the answer; or return why it is left out.

    Args:
        turns: a list of objects with the keys that `role` and `content` name.
        place: where the conversation was read.
        role, content: the format's names of these two keys.
        finish_reason: the row's finish reason; None or empty counts as "stop".

    Raises:
        UsageError: `turns` is not such a list.
    """
    read = parse_messages(turns, place, role=role, content=content)
    if isinstance(read, SkippedRow):
        return read
    if read[-1].role != "assistant":
        return SkippedRow("no-answer", f"the last turn has the role {read[-1].role}", place)
    if not read[-1].content.strip():
        return SkippedRow("empty", "the last turn has no text", place)
    if len(read) == 1:
        return SkippedRow("no-prompt", "the conversation has an answer but no prompt", place)
    finish = finish_reason_of(finish_reason) if isinstance(finish_reason, str) and finish_reason else "stop"
    return ImportedAnswer(Prompt(tuple(read[:-1])), read[-1].content, place, finish_reason=finish)


def parse_messages(
    turns: Any, place: SourceLine, *, role: str = "role", content: str = "content"
) -> list[Message] | SkippedRow:
    """Return the turns of a conversation as messages; or why it is left out.

    Raises:
        UsageError: `turns` is not a list of objects with these two keys, or has an unknown role.
    """
    if not isinstance(turns, list) or not turns:
        raise UsageError(f"{place}: {short_quote(repr(turns))} is not a list of turns", fix=_turn_format(role))
    read: list[Message] = []
    for turn in turns:
        if not isinstance(turn, Mapping) or not isinstance(turn.get(role), str):
            raise UsageError(f"{place}: a turn has no {role!r}: {short_quote(repr(turn))}", fix=_turn_format(role))
        speaker = turn[role].lower()
        if speaker in _TOOLS or turn.get("tool_calls") or turn.get("function_call"):
            return SkippedRow("tool-calls", f"a turn of {turn[role]!r} is a tool call or its result", place)
        if speaker not in _ROLES:
            raise UsageError(f"{place}: the role {turn[role]!r} is unknown", fix=f"use one of {', '.join(_ROLES)}")
        text = plain_text(turn.get(content))
        if text is None:
            return SkippedRow(
                "not-text", f"a turn of {turn[role]!r} is not text: {short_quote(repr(turn.get(content)))}", place
            )
        read.append(Message(_ROLES[speaker], text))
    return read


def plain_text(content: Any) -> str | None:
    """Return a text, or the joined texts of a list of text parts; None for anything else."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        return "".join(part["text"] for part in content)
    return None


def whole_conversations(rows: pa.RecordBatch) -> pa.Array:
    """Return the prompt and completion of every row as one list of turns."""
    prompts, completions = (rows.column(name).to_pylist() for name in ("prompt", "completion"))
    turns: Sequence[Any] = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    return pa.array(turns, MESSAGES)


def _turn_format(role: str) -> str:
    return f"write each turn as an object with {role!r} and a text, or import with the format that the file has"
