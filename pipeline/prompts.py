"""Rows of a file, a Parquet file or a hub data set, through a template, become prompts.

    for prompt in read_prompts(recipe.prompts): ...

With a template, a row's columns are its variables. Without one, a row carries `messages`, or a plain `prompt` string.
Templates run in Jinja2's sandbox: they are data, not programs. Prompts come one at a time; nothing here holds them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.config import PromptSettings, find_input
from pipeline.errors import PromptError
from pipeline.records import Message, Prompt, Role, Split
from pipeline.settings import nearest
from pipeline.storage.location import Location, readable

Row = Mapping[str, Any]


def read_prompts(settings: PromptSettings) -> Iterator[Prompt]:
    """Yield every prompt of the source, in its order, up to `limit`.

    Raises:
        PromptError: the source is missing or empty, a row lacks a column, or the template cannot be rendered.
    """
    render = _Template(settings) if settings.template else _plain_messages
    count = 0
    for number, row in enumerate(_rows(settings), start=1):
        where = f"row {number} of {settings.source}"
        yield Prompt(tuple(_with_system(settings.system, render(row, where))), _reference(settings, row, where))
        count += 1
        if count == settings.limit:
            break
    if count == 0:
        raise PromptError(f"prompts.source is {settings.source}, which has no rows: put one JSON object on each line")


def split_of(prompt: Prompt, holdout: float) -> Split:
    """`validation` for a share `holdout` of all prompts, chosen by content: adding prompts moves no other one."""
    return "validation" if int(prompt.id[:16], 16) < holdout * 2**64 else "train"


# ------------------------------------------------------------------------------------------------------------------ rows


def _rows(settings: PromptSettings) -> Iterator[Row]:
    source = settings.source
    suffix = Path(source).suffix
    if suffix not in {".jsonl", ".parquet"}:
        if suffix or "://" in source or source.startswith((".", "/")) or source.count("/") > 1:
            raise PromptError(
                f"prompts.source is {source!r}: give a .jsonl or a .parquet file, here or at a URL, or a hub data set's id"
            )
        return _hub_rows(source, settings.split)
    file = find_input(source)
    if file is None:
        raise PromptError(
            f"prompts.source is {source}, and there is no such file. Paths start from the working folder."
        )
    return _jsonl_rows(file, source) if suffix == ".jsonl" else _parquet_rows(file, source)


def _jsonl_rows(file: Location, source: str) -> Iterator[Row]:
    opened = readable(file)
    with opened.open("rb") if isinstance(opened, Path) else opened as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise PromptError(
                    f"line {number} of {source} is not JSON: {error}. Put one JSON object on each line."
                ) from None
            if not isinstance(row, dict):
                raise PromptError(
                    f"line {number} of {source} is a {type(row).__name__}: put one JSON object on each line"
                )
            yield row


def _parquet_rows(file: Location, source: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(readable(file)) as parquet:
            for batch in parquet.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise PromptError(f"prompts.source is {source}, which cannot be read as Parquet: {error}") from None


def _hub_rows(source: str, split: str) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        rows = load_dataset(source, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise PromptError(
            f"prompts.source is {source!r} (split {split!r}), which is no file here, and the hub gave: {error}"
        ) from error
    yield from rows


# -------------------------------------------------------------------------------------------------------------- messages


class _Template:
    """A Jinja2 template that makes a row the user's message."""

    def __init__(self, settings: PromptSettings) -> None:
        name = settings.template or ""
        file = find_input(name)
        if file is None:
            raise PromptError(
                f"prompts.template is {name}, and there is no such file. Paths start from the working folder."
            )
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)
        text = file.read_text(encoding="utf-8")
        try:
            self._variables = sorted(jinja2.meta.find_undeclared_variables(environment.parse(text)))
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise PromptError(
                f"prompts.template is {name}, and its line {error.lineno} is wrong: {error.message}"
            ) from None
        self._name = name
        self._columns = settings.columns

    def __call__(self, row: Row, where: str) -> list[Message]:
        values = dict(row) | {name: row[column] for name, column in self._columns.items() if column in row}
        for variable in self._variables:
            if variable not in values:
                raise PromptError(self._missing(variable, row, where))
        try:
            text = self._template.render(values).strip()
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise PromptError(f"the template {self._name} cannot be rendered for {where}: {error}") from None
        if not text:
            raise PromptError(
                f"the template {self._name} gives an empty message for {where}: fill the row or the template"
            )
        return [Message("user", text)]

    def _missing(self, variable: str, row: Row, where: str) -> str:
        column = self._columns.get(variable)
        if column is not None:
            hint = nearest(column, list(row))
            return f"prompts.columns maps {variable!r} to the column {column!r}, which {where} lacks.{hint}"
        return (
            f"the template {self._name} uses {variable!r}, a column that {where} lacks.{nearest(variable, list(row))} "
            f"Mend the row or the template, or map the name in prompts.columns."
        )


def _plain_messages(row: Row, where: str) -> list[Message]:
    """The messages of a row that needs no template: `messages` in the chat form, or `prompt` as text or messages."""
    given = row.get("messages", row.get("prompt"))
    if isinstance(given, str) and given.strip():
        return [Message("user", given)]
    roles = get_args(Role)
    if isinstance(given, list) and given:
        for turn in given:
            if (
                not isinstance(turn, Mapping)
                or turn.get("role") not in roles
                or not isinstance(turn.get("content"), str)
            ):
                raise PromptError(
                    f"{where} has a message that is not {{role, content}} with a role out of {roles}: {turn!r}"
                )
        return [Message(turn["role"], turn["content"]) for turn in given]
    raise PromptError(f"{where} has neither a `prompt` nor `messages`: add one, or set prompts.template")


def _with_system(system: str | None, messages: list[Message]) -> list[Message]:
    if system is None or messages[0].role == "system":
        return messages
    return [Message("system", system), *messages]


def _reference(settings: PromptSettings, row: Row, where: str) -> str | None:
    column = settings.reference or "reference"
    value = row.get(column)
    if value is None and settings.reference is not None:
        raise PromptError(f"prompts.reference is {column!r}, a column that {where} lacks.{nearest(column, list(row))}")
    return None if value is None else str(value)
