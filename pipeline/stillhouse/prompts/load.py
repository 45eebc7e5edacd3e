"""Turn the rows of a JSON lines file, a Parquet file or a hub data set into prompts.

    >>> prompt = next(read_prompts(recipe.prompts))
    >>> prompt.text, prompt.reference
    ('Explain kettle.', 'A kettle is a thing.')
    >>> split_of(prompt, holdout=0.3)
    'train'

With a template, a row's columns are the template's variables. Without one, a row has `messages` or a plain `prompt`.
Prompts are streamed, never all in memory. inputs/cells.py defines the text of a cell; rows.py reads the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

from stillhouse.errors import PromptError
from stillhouse.inputs.cells import NotText, cell_text, is_missing
from stillhouse.prompts.rows import Row, source_rows
from stillhouse.prompts.templates import PromptTemplate
from stillhouse.recipe.prompts import PromptSettings
from stillhouse.records import Message, Prompt, Role, Split
from stillhouse.settings import nearest
from stillhouse.text import short_repr

_PLAIN_COLUMNS = ("messages", "prompt")  # columns of rows that need no template


def read_prompts(settings: PromptSettings) -> Iterator[Prompt]:
    """Yield the prompts of the source, one per row, in order, up to `limit`.

    Raises:
        PromptError: the source is missing or empty, a row lacks a column, a cell is not text, a conversation cannot be
            answered (for instance, it has no user turn), or the template cannot be rendered.
    """
    template = PromptTemplate(settings) if settings.template else None
    count = 0
    for number, row in enumerate(source_rows(settings), start=1):
        where = f"row {number} of {settings.source}"
        messages = [Message("user", template(row, where))] if template else _plain_messages(settings, row, where)
        prompt = _prompt(settings, _with_system(settings.system, messages), _reference(settings, row, where), where)
        yield (
            prompt if settings.score_tokens is None else replace(prompt, tokens_to_score=_tokens(settings, row, where))
        )
        count += 1
        if count == settings.limit:
            break
    if count == 0:
        raise PromptError(
            "it has no rows", setting="prompts.source", value=settings.source, fix="put one JSON object on each line"
        )


def split_of(prompt: Prompt, holdout: float) -> Split:
    """Return `validation` for a share `holdout` of all prompts, else `train`.

    The split depends on the prompt's content hash alone: adding prompts never moves another prompt between splits.
    """
    return "validation" if int(prompt.id[:16], 16) < holdout * 2**64 else "train"


# -------------------------------------------------------------------------------------------------------------- messages


def _plain_messages(settings: PromptSettings, row: Row, where: str) -> list[Message]:
    """Return the messages of a row without a template: from `messages` or `prompt`, each a text or a list of messages."""
    names = [settings.columns.get(name, name) for name in _PLAIN_COLUMNS]
    given = {name: row[name] for name in names if name in row}
    column = next((name for name, cell in given.items() if not is_missing(cell) and cell != []), None)
    if column is None:
        empty = " and ".join(
            f"its {name!r} is {'null' if is_missing(cell) else 'empty'}" for name, cell in given.items()
        )
        why = f" ({empty})" if empty else ""
        raise PromptError(
            f"{where} has neither a `prompt` nor `messages`{why}", fix="add one of the two, or set prompts.template"
        )
    cell = given[column]
    if isinstance(cell, list):
        return [_message(turn, f"turn {place} of {column!r} in {where}") for place, turn in enumerate(cell, start=1)]
    text = _text(cell, f"the {column!r} of {where}", "use a text, or a list of {role, content}")
    if not text.strip():
        raise PromptError(f"the {column!r} of {where} is blank", fix="fill it")
    return [Message("user", text)]


def _message(turn: Any, where: str) -> Message:
    roles = get_args(Role)
    if not isinstance(turn, Mapping):
        raise PromptError(
            f"{where} is {short_repr(turn)}",
            fix=f"write each turn as {{role, content}}, with one of the roles {', '.join(roles)}",
        )
    role: Any = turn.get("role")
    if role == "tool" or turn.get("tool_calls") or turn.get("function_call"):
        raise PromptError(f"{where} is a tool call or its result, which prompts cannot contain", fix="remove the row")
    if role not in roles:
        raise PromptError(f"{where} has the role {short_repr(role)}", fix=f"use one of {', '.join(roles)}")
    content = turn.get("content")
    if isinstance(content, list):
        content = _joined_parts(content, where)
    return Message(role, _text(content, f"{where} (the {role}'s)", "write the turn's `content` as a text"))


def _joined_parts(parts: list[Any], where: str) -> str:
    """Join the text parts of a message's content, in the format of OpenAI's API."""
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise PromptError(
                f"{where} has a part that is not text, {short_repr(part)}",
                fix="use only text parts, or remove the row",
            )
    return "".join(part["text"] for part in parts)


def _text(cell: Any, what: str, fix: str) -> str:
    try:
        text = cell_text(cell)
    except NotText as problem:
        raise PromptError(f"{what} is {problem}", fix=fix) from None
    if text is None:
        raise PromptError(f"{what} is null", fix=fix)
    return text


def _with_system(system: str | None, messages: list[Message]) -> list[Message]:
    if system is None or messages[0].role == "system":
        return messages
    return [Message("system", system), *messages]


# ------------------------------------------------------------------------------------------- the last turn, the reference


def _prompt(settings: PromptSettings, messages: list[Message], reference: str | None, where: str) -> Prompt:
    """Return the prompt, after checking its turns; `prompts.last_turn` decides what to do with a final assistant turn."""
    if messages[-1].role == "assistant" and settings.last_turn == "reference":
        answer = Prompt((), messages.pop().content).reference  # None if it is blank
        if reference is not None and answer is not None and reference != answer:
            raise PromptError(
                f"{where} has two references: its last turn, and the column {settings.reference or 'reference'!r}",
                setting="prompts.last_turn",
                value="reference",
                fix="remove one of the two",
            )
        reference = answer or reference
        if not messages or messages[-1].role == "assistant":
            raise PromptError(
                f"{where} has no user turn before the last assistant turn", fix="add a user turn, or remove the row"
            )
    users = [turn for turn in messages if turn.role == "user"]
    if not users:
        raise PromptError(f"{where} has no user turn, only {' and '.join(_roles(messages))}", fix="add a user turn")
    if any(not turn.content.strip() for turn in users):
        raise PromptError(f"{where} has a user turn without text", fix="fill it, or remove the row")
    last = messages[-1]
    if last.role == "assistant" and settings.last_turn == "refuse":
        raise PromptError(
            f"{where} ends with an assistant turn",
            setting="prompts.last_turn",
            value="refuse",
            fix="set it to 'reference' (the turn is the reference, not part of the prompt) or to 'continue' (the teacher "
            "continues the turn)",
        )
    if last.role == "assistant" and not last.content.strip():
        raise PromptError(
            f"{where} ends with an assistant turn without text, which cannot be continued", fix="remove the turn"
        )
    return Prompt(tuple(messages), reference)


def _roles(messages: list[Message]) -> list[str]:
    return list(dict.fromkeys(turn.role for turn in messages))


def _reference(settings: PromptSettings, row: Row, where: str) -> str | None:
    """Return the reference of a row; None if it is null or NaN."""
    column = settings.reference or "reference"
    if settings.reference is not None and column not in row:
        raise PromptError(
            f"{where} has no such column", setting="prompts.reference", value=column, fix=nearest(column, list(row))
        )
    try:
        return cell_text(row.get(column))
    except NotText as problem:
        raise PromptError(
            f"the column {column!r} of {where} is {problem}, and a reference must be a text",
            setting="prompts.reference",
            value=settings.reference,
            fix="set it to a column of texts",
        ) from None


def _tokens(settings: PromptSettings, row: Row, where: str) -> tuple[int, ...]:
    """Return the token ids to score."""
    column = settings.score_tokens or ""
    if column not in row:
        raise PromptError(
            f"{where} has no such column", setting="prompts.score_tokens", value=column, fix=nearest(column, list(row))
        )
    ids = row[column]
    if isinstance(ids, list) and ids and all(isinstance(one, int) and one >= 0 for one in ids):
        return tuple(ids)
    raise PromptError(
        f"the column {column!r} of {where} is {short_repr(ids)}, which is not a list of token ids",
        setting="prompts.score_tokens",
        value=column,
        fix="fill it with at least one token id in each row",
    )
