"""What every part of a recipe is made of, and how a wrong one is told of.

    class ServeSettings(Settings): ...
    parse_options("teacher.options", given, ServeSettings)

An unknown key is refused with its path and the nearest right one.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from stillhouse.errors import RecipeError


class Settings(BaseModel):
    """Base of every part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """`limit: true` is no 1; pydantic would take it for one."""
        if isinstance(value, bool) and info.field_name is not None:
            kinds = _kinds(cls.model_fields[info.field_name].annotation)
            if kinds & {int, float} and bool not in kinds:
                raise ValueError("is a truth value: give a number")
        return value


Options = TypeVar("Options", bound=Settings)


def parse_options(where: str, given: Mapping[str, Any], options: type[Options]) -> Options:
    """The options of one kind of teacher or filter, as that kind's own settings; `where` is their place in the recipe.

    Raises:
        RecipeError: with one line for every wrong option.
    """
    try:
        return options.model_validate(given)
    except ValidationError as error:
        raise RecipeError("\n".join(explain(options, detail, where) for detail in error.errors())) from None


def nearest(word: str, choices: Sequence[str]) -> str:
    """A hint such as " Did you mean 'temperature'?", or the choices where none is near."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Choose from: {', '.join(choices)}." if choices else ""


def explain(model: type[BaseModel], detail: Any, where: str | None = None) -> str:
    """One pydantic complaint in words: the path (below `where`, if that is given), the value, the mend."""
    path = ".".join(str(part) for part in [where, *detail["loc"]] if part is not None) or "recipe"
    value = detail["input"]
    if detail["type"] == "extra_forbidden":
        parent = _model_at(model, detail["loc"][:-1])
        names = [field.alias or name for name, field in parent.model_fields.items()] if parent else []
        return f"{path}: there is no such setting.{nearest(str(detail['loc'][-1]), names)}"
    if detail["type"] == "missing":
        return f"{path}: is missing; give it a value"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{path}: {message}" + ("" if isinstance(value, (dict, BaseModel)) else f" (it is {value!r})")


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel] | None:
    """The settings model at a path inside `model`, through optional fields and tuples."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or current is None:
            continue
        field = next((f for name, f in current.model_fields.items() if part in (name, f.alias)), None)
        current = _settings_in(field.annotation) if field else None
    return current


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is made of: int and None of `int | None`; what a container holds is not looked at."""
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(_kinds(arg) for arg in get_args(annotation)))
    return {annotation}


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, tuple, list):
        return next((found for arg in get_args(annotation) if (found := _settings_in(arg))), None)
    return None
