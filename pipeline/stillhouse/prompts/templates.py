"""`prompts.template`: a Jinja2 file that renders a row of the source as the user's message.

    >>> template = PromptTemplate(recipe.prompts)
    >>> template({"word": "hammer"}, "row 2 of words.jsonl")
    'Explain hammer.'

A row's columns are the template's variables. Errors name the file, the row and, if known, the line and the column.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import jinja2

from stillhouse.errors import PromptError
from stillhouse.inputs.cells import NotText, is_missing
from stillhouse.inputs.user_files import Unreadable, decode_text
from stillhouse.prompts.template_text import TextEnvironment
from stillhouse.recipe.load import find_input
from stillhouse.recipe.prompts import PromptSettings
from stillhouse.settings import nearest
from stillhouse.text import short_quote

_MESSAGE = 200  # maximum length of an exception's message, characters


class PromptTemplate:
    """A compiled prompt template; call it with a row to get the user's message.

    Raises:
        PromptError: the template file is missing, cannot be read, or is not valid Jinja.
    """

    def __init__(self, settings: PromptSettings) -> None:
        name = settings.template or ""
        file = find_input(name)
        if file is None:
            raise PromptError(
                "the file does not exist",
                setting="prompts.template",
                value=name,
                fix="check the path, which is relative to the working folder",
            )
        self._environment = TextEnvironment()
        self._name = name
        self._columns = settings.columns
        try:
            text = decode_text(file.read_bytes())
            self._template, self._variables = self._environment.compile_text(text)
        except Unreadable as error:
            raise PromptError(
                f"the file cannot be read: {error}",
                setting="prompts.template",
                value=name,
                fix="save it as text in UTF-8, or name another file",
            ) from None
        except jinja2.TemplateSyntaxError as error:
            raise PromptError(
                f"line {error.lineno} is not valid Jinja: {error.message}",
                setting="prompts.template",
                value=name,
                fix="correct the template",
            ) from None
        except Exception as error:  # from Python's compiler, or brackets nested too deeply
            raise PromptError(
                f"the template cannot be compiled: {_describe(error)}",
                setting="prompts.template",
                value=name,
                fix="correct the template",
            ) from error

    def __call__(self, row: Mapping[str, Any], where: str) -> str:
        """Return the user's message for one row; `where` names the row in errors.

        Raises:
            PromptError: the row lacks a column, or the template cannot be rendered with it.
        """
        mapped = {name: row[column] for name, column in self._columns.items() if column in row}
        own = {name: cell for name, cell in row.items() if name not in self._columns}
        values = {name: None if is_missing(cell) else cell for name, cell in {**own, **mapped}.items()}
        for variable in sorted(self._variables):
            if variable not in values:
                raise self._missing_column(variable, row, where)
        try:
            text = self._environment.render(self._template, values).strip()
        except NotText as problem:
            raise self._not_text(problem, values, where) from None
        except Exception as error:  # a template is the user's code: it may raise anything, and they fix it
            raise PromptError(
                f"it cannot be rendered for {where}{_line(error)}: {_describe(error)}",
                setting="prompts.template",
                value=self._name,
                fix="correct the template or the row",
            ) from None
        if not text:
            raise PromptError(
                f"it renders an empty message for {where}",
                setting="prompts.template",
                value=self._name,
                fix="fill the row, or change the template",
            )
        return text

    def _missing_column(self, variable: str, row: Mapping[str, Any], where: str) -> PromptError:
        column = self._columns.get(variable)
        if column is not None:
            return PromptError(
                f"{where} has no such column",
                setting=f"prompts.columns.{variable}",
                value=column,
                fix=nearest(column, list(row)),
            )
        return PromptError(
            f"it uses the variable {variable!r}, and {where} has no such column",
            setting="prompts.template",
            value=self._name,
            fix=nearest(
                variable,
                list(row),
                "correct the row or the template, or map the variable to a column in prompts.columns",
            ),
        )

    def _not_text(self, problem: NotText, values: Mapping[str, Any], where: str) -> PromptError:
        """Return the error for a printed value without a text form: the column, if known, and how to write it."""
        names = [name for name in sorted(self._variables) if values[name] is problem.value]
        shown = " or ".join(
            f"{name!r}" + (f" (the column {self._columns[name]!r})" if name in self._columns else "") for name in names
        )
        return PromptError(
            f"it prints {shown or 'a value'}, which is {problem} in {where}{_line(problem)}",
            setting="prompts.template",
            value=self._name,
            fix=_how_to_print(problem.value, names[0] if names else "..."),
        )


def _how_to_print(value: object, name: str) -> str:
    if value is None:
        return f"fill the row, or skip the variable in the template: {{% if {name} %}}...{{% endif %}}"
    if isinstance(value, (bytes, bytearray)):
        return f"store it as text, or decode it in the template: {{{{ {name}.decode('latin-1') }}}}"
    if isinstance(value, Mapping):
        return f"print one of its keys, {{{{ {name}.title }}}}, or print it as JSON, {{{{ {name} | tojson }}}}"
    return f"format it in the template, {{{{ {name} | join(', ') }}}}, or use a loop"


def _line(error: BaseException) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f" (line {lines[-1]} of the template)" if lines else ""


def _describe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it calls itself too often, or its expressions are nested too deeply"
    message = str(error) or type(error).__name__
    return message if len(message) <= _MESSAGE else short_quote(message, _MESSAGE)
