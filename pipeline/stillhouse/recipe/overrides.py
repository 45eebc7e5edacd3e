"""Change settings by their dotted paths, as `--set a.b=value` does."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.errors import RecipeError
from stillhouse.inputs.yaml_text import YamlError, parse_yaml


def with_overrides(raw: Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a recipe's settings with overrides applied: "a.b=value" each (the value is YAML), or {"a.b": value}.

    Raises:
        RecipeError: an override does not have this form, or its path leads through a value that is not a mapping of
            settings.
    """
    result = copy.deepcopy(dict(raw))
    if isinstance(overrides, Mapping):
        for path, value in overrides.items():
            set_value(result, path, value, path)
    else:
        for override in overrides:
            _apply_override(result, override)
    return result


def _apply_override(raw: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise RecipeError(
            f"{override!r} does not have the form a.b=value",
            setting="--set",
            fix="give a path and a value, for instance --set student.loss.temperature=2",
        )
    try:
        value = parse_yaml(text)
    except YamlError as error:
        raise RecipeError(
            f"the value is not valid YAML: {error}",
            setting=f"--set {path}",
            fix="correct it; a text with special characters needs quotation marks",
        ) from error
    set_value(raw, path, value, f"--set {override}")


def set_value(raw: dict[str, Any], path: str, value: Any, source: str) -> None:
    """Set the value at a dotted path; `source`, such as "--set a.b=1", is the setting that errors name.

    Raises:
        RecipeError: the path leads through a value that is not a mapping of settings, or to a list entry that does not
            exist.
    """
    *parents, last = path.split(".")
    container: dict[str, Any] | list[Any] = raw
    visited: list[str] = []
    for parent in parents:
        key = _key(container, parent, ".".join(visited), source)
        child = container.setdefault(key, {}) if isinstance(container, dict) else container[key]
        if child is None:
            child = container[key] = {}
        visited.append(parent)
        if not isinstance(child, dict | list):
            raise RecipeError(
                f"{'.'.join(visited)} is {child!r}, which is not a mapping of settings",
                setting=source,
                fix="set the whole value instead",
            )
        container = child
    container[_key(container, last, ".".join(visited), source)] = value


def _key(container: dict[str, Any] | list[Any], part: str, path: str, source: str) -> Any:
    """Return a part of a dotted path as a key of `container`, the value at `path`: a name, or the index of a list entry.

    Raises:
        RecipeError: `container` is a list, and `part` is not the index of one of its entries.
    """
    if isinstance(container, dict):
        return part
    numbers = f"its entries are numbered from 0 to {len(container) - 1}" if container else "it has no entries"
    if not (part.isascii() and part.isdecimal()):
        raise RecipeError(
            f"{path} is a list, and {part!r} is not the number of an entry: {numbers}",
            setting=source,
            fix="give a number, or set the whole list",
        )
    if int(part) >= len(container):
        raise RecipeError(
            f"{path} has no entry {part}: {numbers}", setting=source, fix="to add an entry, give the whole list"
        )
    return int(part)
