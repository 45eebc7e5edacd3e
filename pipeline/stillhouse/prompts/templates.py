"""`prompts.template`: a Jinja2 file that renders a row of the source as the user's message.

    message = PromptTemplate(recipe.prompts)(row, "row 2 of words.jsonl")

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
from stillhouse.recipe.load import PromptSettings, find_input
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
                f"prompts.template is {name}, and there is no such file. Paths start from the working folder."
            )
        self._environment = TextEnvironment()
        self._name = name
        self._columns = settings.columns
        try:
            text = decode_text(file.read_bytes())
            self._template, self._variables = self._environment.compile_text(text)
        except Unreadable as error:
            raise PromptError(f"prompts.template is {name}, which cannot be read: {error}") from None
        except jinja2.TemplateSyntaxError as error:
            raise PromptError(
                f"prompts.template is {name}, and its line {error.lineno} is wrong: {error.message}"
            ) from None
        except Exception as error:  # from Python's compiler, or brackets nested too deeply
            raise PromptError(f"prompts.template is {name}, which cannot be compiled: {_words(error)}") from error

    def __call__(self, row: Mapping[str, Any], where: str) -> str:
        """Return the user's message for one row; `where` names the row in errors.

        Raises:
            PromptError: the row lacks a column, or the template cannot be rendered with it.
        """
        mapped = {name: row[column] for name, column in self._columns.items() if column in row}
        values = {name: None if is_missing(cell) else cell for name, cell in {**row, **mapped}.items()}
        for variable in sorted(self._variables):
            if variable not in values:
                raise PromptError(self._without_column(variable, row, where))
        try:
            text = self._environment.render(self._template, values).strip()
        except NotText as problem:
            raise PromptError(self._not_text(problem, values, where)) from None
        except Exception as error:  # a template is the user's code: it may raise anything, and they fix it
            raise PromptError(
                f"the template {self._name} cannot be rendered for {where}{_line(error)}: {_words(error)}"
            ) from None
        if not text:
            raise PromptError(
                f"the template {self._name} gives an empty message for {where}: fill the row or the template"
            )
        return text

    def _without_column(self, variable: str, row: Mapping[str, Any], where: str) -> str:
        column = self._columns.get(variable)
        if column is not None:
            hint = nearest(column, list(row))
            return f"prompts.columns maps {variable!r} to the column {column!r}, which {where} lacks.{hint}"
        return (
            f"the template {self._name} uses {variable!r}, a column that {where} lacks.{nearest(variable, list(row))} "
            f"Mend the row or the template, or map the name in prompts.columns."
        )

    def _not_text(self, problem: NotText, values: Mapping[str, Any], where: str) -> str:
        """Return the message for a printed value without a text form: the column, if known, and how to write it."""
        names = [name for name in sorted(self._variables) if values[name] is problem.value]
        shown = " or ".join(
            f"{name!r}" + (f" (the column {self._columns[name]!r})" if name in self._columns else "") for name in names
        )
        printed = (
            f"the template {self._name} prints {shown or 'a value'}, which is {problem} in {where}{_line(problem)}"
        )
        name = names[0] if names else "..."
        if problem.value is None:
            return f"{printed}. Fill the row, or leave it out in the template: {{% if {name} %}}...{{% endif %}}"
        if isinstance(problem.value, (bytes, bytearray)):
            return f"{printed}. Store it as text, or decode it in the template: {{{{ {name}.decode('latin-1') }}}}"
        if isinstance(problem.value, Mapping):
            return (
                f"{printed}. Name a part of it, {{{{ {name}.title }}}}, or write it as JSON, {{{{ {name} | tojson }}}}"
            )
        return f"{printed}. Say in the template how it is written: {{{{ {name} | join(', ') }}}}, or a loop"


def _line(error: BaseException) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f" (line {lines[-1]} of the template)" if lines else ""


def _words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it calls itself too often, or its expressions are nested too deeply"
    said = str(error) or type(error).__name__
    return said if len(said) <= _MESSAGE else short_quote(said, _MESSAGE)
