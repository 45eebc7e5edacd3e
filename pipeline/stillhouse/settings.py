"""Base class of the recipe's parts, and the errors that describe a wrong setting.

    >>> class Options(Settings):
    ...     batch_size: int = 8
    >>> parse_options("teacher.options", {"batch_size": 32}, Options).batch_size
    32
    >>> parse_options("teacher.options", {"batchsize": 32}, Options)
    Traceback (most recent call last):
    stillhouse.errors.RecipeError: teacher.options.batchsize: there is no such setting. Did you mean 'batch_size'?

An unknown key is an error that names its path and the nearest valid key.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from stillhouse.errors import RecipeError, RecipeFaults

_MESSAGES = {  # in place of pydantic's own, which name Python types
    "model_type": "it must be a mapping of settings",
    "model_attributes_type": "it must be a mapping of settings",
    "dict_type": "it must be a mapping",
    "mapping_type": "it must be a mapping",
    "tuple_type": "it must be a list",
    "list_type": "it must be a list",
    "string_type": "it must be text",
}


class Settings(BaseModel):
    """Base of every part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject `limit: true`, which pydantic would read as 1."""
        if isinstance(value, bool) and info.field_name is not None:
            types_ = _types_in(cls.model_fields[info.field_name].annotation)
            if types_ & {int, float} and bool not in types_:
                raise ValueError("it must be a number, not true or false")
        return value


class SettingError(ValueError):
    """A ValueError of a validator with the fields of a `RecipeError`; `setting` is relative to the validated model."""

    def __init__(self, problem: str | RecipeError, **fields: Any) -> None:
        self.error = RecipeError(problem, **fields) if isinstance(problem, str) else problem
        super().__init__(str(self.error))


Options = TypeVar("Options", bound=Settings)


def parse_options(path: str, given: Mapping[str, Any], options: type[Options]) -> Options:
    """Validate the options of a teacher, filter, loss or metric; `path` is where the recipe has them.

    Raises:
        RecipeError: an option is unknown or has a wrong value.
        RecipeFaults: several options are wrong.
    """
    try:
        return options.model_validate(given)
    except ValidationError as error:
        faults = setting_errors(options, error, path)
    raise faults[0] if len(faults) == 1 else RecipeFaults.of(faults)


def nearest(word: str, choices: Sequence[str], otherwise: str | None = None) -> str | None:
    """Return the `fix` of an error about an unknown name, such as "did you mean 'temperature'?".

    Args:
        word: the name.
        choices: the names that exist; they are listed if none is similar.
        otherwise: another fix, which is added; the only one if there are no choices.
    """
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?{f' Or {otherwise}' if otherwise else ''}"
    if choices:
        return f"choose from: {', '.join(choices)}{f'; or {otherwise}' if otherwise else ''}"
    return otherwise


def setting_errors(model: type[BaseModel], error: ValidationError, path: str | None = None) -> list[RecipeError]:
    """Return one error per wrong setting; `path` is where the recipe has the settings of `model`, None for the root."""
    return [_setting_error(model, detail, path) for detail in error.errors()]


def _setting_error(model: type[BaseModel], detail: Any, path: str | None) -> RecipeError:
    location = ".".join(str(part) for part in [path, *detail["loc"]] if part is not None)
    setting, value = location or None, detail["input"]
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        path_inside = cause.error.setting
        return cause.error.replace(setting=".".join(filter(None, [location, path_inside]))) if location else cause.error
    if detail["type"] == "extra_forbidden":
        parent = _model_at(model, detail["loc"][:-1])
        names = [field.alias or name for name, field in parent.model_fields.items()] if parent else []
        return RecipeError("there is no such setting", setting=setting, fix=nearest(str(detail["loc"][-1]), names))
    if detail["type"] == "missing":
        return RecipeError("it is missing", setting=setting, fix="give it a value")
    message = _MESSAGES.get(detail["type"]) or re.sub(
        r"^\w+ should ", "it must ", str(detail["msg"]).removeprefix("Value error, ")
    )
    if isinstance(value, (dict, BaseModel)):
        return RecipeError(message, setting=setting)
    return RecipeError(message, setting=setting, value=value)


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel] | None:
    """Return the settings model at a path inside `model`, through optional fields and tuples."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or current is None:
            continue
        field = next((f for name, f in current.model_fields.items() if part in (name, f.alias)), None)
        current = _settings_in(field.annotation) if field else None
    return current


def _types_in(annotation: Any) -> set[Any]:
    """Return the members of a union, such as int and None; a container counts as one type, without its items' types."""
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(_types_in(arg) for arg in get_args(annotation)))
    return {annotation}


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, tuple, list):
        return next((found for arg in get_args(annotation) if (found := _settings_in(arg))), None)
    return None
