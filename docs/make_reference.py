"""Write docs/settings.md and docs/commands.md from the code: `make docs`.

python docs/make_reference.py            # write both pages
python docs/make_reference.py --check    # exit with status 1 where one is not up to date
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import stillhouse.evaluation.metrics
import stillhouse.quality
import stillhouse.student.losses
import stillhouse.teachers
from stillhouse.cli.main import app
from stillhouse.plugins import built_in_kinds
from stillhouse.recipe.recipe import Recipe
from stillhouse.settings import Settings

DOCS = Path(__file__).parent
_DO_NOT_EDIT = "<!-- Written by docs/make_reference.py from the code: edit the descriptions there. -->\n"
# The options of a kind, by the part of the recipe that they are in.
_KINDS: tuple[tuple[str, str, types.ModuleType], ...] = (
    ("teacher.options", "teacher.kind", stillhouse.teachers),
    ("quality", "quality.kind", stillhouse.quality),
    ("student.loss", "student.loss.kind", stillhouse.student.losses),
    ("evaluate.metrics", "evaluate.metrics.kind", stillhouse.evaluation.metrics),
)


class Undescribed(Exception):
    """A setting or an option of a command has no description."""


# --------------------------------------------------------------------------------------------------------------- settings


def settings_page() -> str:
    """Return the page of every setting of a recipe.

    Raises:
        Undescribed: a setting has no description.
    """
    parts = [
        "# Settings\n",
        _DO_NOT_EDIT,
        "Every setting of a recipe, in the order of the file. A setting without a default must be given. `--set a.b=value` "
        'changes one on the command line, and `stillhouse.load_recipe(..., {"a.b": value})` in Python.\n',
        *_model_section("", Recipe, _homes("", Recipe)),
        "## Options of each kind\n",
        "Options are given next to `kind`, those of a teacher in `teacher.options`.\n",
    ]
    for where, setting, package in _KINDS:
        for kind, module_name in sorted(built_in_kinds(package).items()):
            module = import_module(f"{package.__name__}.{module_name}")
            parts += _kind_section(where, setting, kind, module)
    return "\n".join(parts)


def _anchor(path: str) -> str:
    """The anchor of a section's heading, as Markdown makes it."""
    return re.sub(r"[^\w -]", "", path.lower()).replace(" ", "-")


def _model_section(path: str, model: type[BaseModel], homes: Mapping[type[BaseModel], str]) -> Iterator[str]:
    """Yield the table of a model's own settings, then the sections of the models inside."""
    yield f"## `{path}`\n" if path else "## The recipe\n"
    if path and homes[model] != path:
        yield f"The settings of [`{homes[model]}`](#{_anchor(homes[model])}).\n"
        return
    if path and model.__doc__:
        yield _prose(model.__doc__) + "\n"
    yield from _table(model, path)
    for shown, inside in _inside(path, model):
        yield from _model_section(shown, inside, homes)


def _homes(path: str, model: type[BaseModel]) -> dict[type[BaseModel], str]:
    """Return the section in which each model is described: the first one, and of a student's settings `student`."""
    found: dict[type[BaseModel], str] = {}
    for shown, inside in _inside(path, model):
        for each, home in ({inside: shown} | _homes(shown, inside)).items():
            if each not in found or (home.startswith("student.") and not found[each].startswith("student.")):
                found[each] = home
    return found


def _inside(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the models that are settings of a model, each with its path."""
    for name, field in model.model_fields.items():
        for inside in _models_in(field.annotation):
            yield f"{path}.{field.alias or name}".lstrip("."), inside


def _kind_section(where: str, setting: str, kind: str, module: types.ModuleType) -> Iterator[str]:
    yield f"### `{setting}: {kind}`\n"
    yield _prose((module.__doc__ or "").partition("\n")[0]) + "\n"
    options = [
        one
        for name, one in vars(module).items()
        if inspect.isclass(one)
        and issubclass(one, Settings)
        and one.__module__ == module.__name__
        and "Options" in name
    ]
    for one in options:
        yield from _table(one, f"{where} of {kind}")
        for name, field in one.model_fields.items():
            for inside in _models_in(field.annotation):
                yield f"`{name}`: {_prose(inside.__doc__ or '')}\n"
                yield from _table(inside, f"{where}.{name} of {kind}")
    if not options:
        yield "No options.\n"


def _table(model: type[BaseModel], where: str) -> Iterator[str]:
    if not model.model_fields:
        return
    yield "| setting | type | default | meaning |\n| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        if not field.description:
            raise Undescribed(f"{where}.{name} ({model.__module__}.{model.__name__}) has no description")
        cells = [f"`{field.alias or name}`", _type(field.annotation), _default(field), _prose(field.description)]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _type(annotation: Any) -> str:
    """A type in words: `null`, text, whole number, one of, list of."""
    words = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        type(None): "null",
        Any: "anything",
    }
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in words:
        return words[annotation]
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in arguments))
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}" if arguments else "list"
    if origin in (dict, Mapping):
        return "mapping"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "mapping"
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _type(arguments[0])
    return str(getattr(annotation, "__name__", annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_yaml(one) for one in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(one)}" for key, one in value.items()) + "}"
    return str(value)


def _prose(text: str) -> str:
    """Return a docstring or a description on one line, as Markdown, with the names of YAML."""
    line = " ".join(inspect.cleandoc(text).split())
    return re.sub(r"\bNone\b", "null", line).replace("<", "&lt;")


# --------------------------------------------------------------------------------------------------------------- commands


def commands_page() -> str:
    """Return the page of every command with its options.

    Raises:
        Undescribed: a command or an option has no help text.
    """
    parts = [
        "# Commands\n",
        _DO_NOT_EDIT,
        "Exit status: 0 done; 1 failed; 2 the recipe or the arguments are wrong, and nothing was sent; 3 done, but more "
        "prompts were rejected than `label.max_rejected` allows; 130 interrupted. With `--json` the result is one JSON "
        "object on standard output, and everything else goes to standard error. A command that fails also prints one JSON "
        "object: `error`, with the fields `kind` (the error's class), `message`, `problem`, `setting`, `value` and `fix`; "
        "unknown fields are null. An interrupted command prints none.\n",
        "`run`, `finetune`, `label`, `distill` and `evaluate` run as [Prefect](https://www.prefect.io) flows if a Prefect "
        "API is configured (`PREFECT_API_URL` or a profile), or with `--flow`, which starts an embedded one. Otherwise the "
        "same functions run without Prefect.\n",
    ]
    for name, command in _commands(typer.main.get_command(app), "stillhouse"):
        parts += _command_section(name, command)
    return "\n".join(parts)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for part in command.commands.values():
            yield from _commands(part, f"{name} {part.name}")
    else:
        yield name, command


def _command_section(name: str, command: Any) -> Iterator[str]:
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    if not command.help:
        raise Undescribed(f"{name} has no help text")
    yield f"## `{name}`\n"
    yield _prose(command.help) + "\n"
    usage = " ".join([name, *(_metavar(one) for one in arguments), "[OPTIONS]"])
    yield f"    {usage}\n"
    yield "| argument or option | meaning |\n| --- | --- |"
    for one in shown:
        text = getattr(one, "help", None)
        if not text:
            raise Undescribed(f"{name} {one.name} has no help text")
        flags = [*one.opts, *one.secondary_opts] if one.param_type_name == "option" else [_metavar(one)]
        names = ", ".join(f"`{flag}`" for flag in flags)
        yield f"| {names} | {_prose(text)} |".replace("\\n", " ")
    yield ""


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


# ------------------------------------------------------------------------------------------------------------------- main


def pages() -> dict[Path, str]:
    """Return each generated page by its file."""
    return {DOCS / "settings.md": settings_page(), DOCS / "commands.md": commands_page()}


def main() -> None:
    """Write or check both pages."""
    parser = argparse.ArgumentParser(description="Write the reference of settings and commands from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is not up to date")
    check = parser.parse_args().check
    for file, text in pages().items():
        if check and (not file.is_file() or file.read_text("utf-8") != text):
            sys.exit(f"{file.name} is not up to date: run `make docs`")
        if not check:
            file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
