"""The `sweep` part of a recipe: the student settings that vary between the students of a sweep.

sweep: {student.init.layers: [20, 16, 12, 8]}

Several keys make a grid, in the order given: each value of the first key with each value of the second. `at_a_time` is the
number of students trained in parallel. The name of a grid point depends only on its own values, so that adding or
reordering values renames no student:

    student.init.layers: 16                                        16 layers                   layers-16
    student.init.layers: 16, student.loss.temperature: 2           layers 16, temperature 2    layers-16_temperature-2
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ConfigDict, Field, model_validator

from stillhouse.records import content_hash
from stillhouse.settings import SettingError, Settings, nearest

_STUDENT = "student."
_AT_A_TIME = "at_a_time"
OTHER_SECTIONS = (  # every setting of a recipe but `student`; not computed: recipe.py imports this module
    *("name", "seed", "prompts", "references", "teacher", "label", "quality", "dataset", "students", "evaluate"),
    "on_policy",
    "sweep",
)
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")  # texts of values that go into a name unchanged
_LONGEST_VALUE = 24  # characters of a value in a name
_LONGEST_SLUG = 80  # characters
_LONGEST_LABEL = 40  # characters


@dataclass(frozen=True)
class GridPoint:
    """One combination of the sweep's values, with its names."""

    settings: dict[str, Any]  # dotted path -> value
    label: str  # for output: "16 layers"
    slug: str  # for folder names: "layers-16"


class SweepSettings(Settings):
    """The grid: every key except `at_a_time` is the dotted path of a student setting, with the list of its values."""

    model_config = ConfigDict(frozen=True, extra="allow")

    at_a_time: int = Field(
        default=1, ge=1, description="students trained in parallel, each in a separate process if more than 1"
    )

    @model_validator(mode="before")
    @classmethod
    def _flatten_and_check_axes(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        flat = _flat(given)
        axes = {path: values for path, values in flat.items() if path != _AT_A_TIME}
        if not axes:
            raise SettingError(
                "it has no setting to vary", fix="give one, for instance {student.init.layers: [16, 12, 8]}"
            )
        for path, values in axes.items():
            _check_axis(str(path), values)
        return flat

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The values of each setting, by dotted path."""
        return {path: tuple(values) for path, values in (self.model_extra or {}).items()}

    def grid(self) -> tuple[GridPoint, ...]:
        """Return the points of the grid; the last key varies fastest."""
        names = _short_names(list(self.axes))
        points = []
        for values in itertools.product(*self.axes.values()):
            settings = dict(zip(self.axes, values, strict=True))
            named = [(names[path], value) for path, value in settings.items()]
            points.append(GridPoint(settings, _label(named), _slug(named)))
        return tuple(points)


def _flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested mappings, as made by `--set sweep.student.init.layers=[8, 4]`, to dotted paths; later keys win."""
    flat: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, Mapping) and str(key).split(".")[0] == "student":
            flat |= {f"{key}.{path}": values for path, values in _flat_below(value).items()}
        else:
            flat[key] = value
    return flat


def _flat_below(given: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{path}": values for path, values in _flat_below(value).items()}
        else:
            flat[str(key)] = value
    return flat


def _check_axis(path: str, values: Any) -> None:
    """Check that a key is a path of a student setting, and that its values are a non-empty list.

    Raises:
        SettingError: the path is not one of a student setting, or its value is not a list or is an empty one.
    """
    section = path.split(".")[0]
    if section in OTHER_SECTIONS:
        raise SettingError(
            "a sweep varies only settings of the student: all its students learn from one dataset and are compared on it",
            setting=path,
            fix=f"run the recipe once for each value, with --set {path}=... --set name=... --set dataset.name=...",
        )
    if not path.startswith(_STUDENT) or path == _STUDENT:
        raise SettingError(
            "a sweep has no such setting",
            setting=path,
            fix=nearest(
                path,
                [_AT_A_TIME, "student.init.layers"],
                "give a path that begins with `student.`, such as student.init.layers",
            ),
        )
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise SettingError("it is not a list", setting=path, value=values, fix="give a list, such as [16, 12, 8]")
    if not values:
        raise SettingError("the list is empty", setting=path, fix="give at least one value, or remove the key")


# ----------------------------------------------------------------------------------------------------------------- names


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return the shortest unique suffix of each path: `layers` for student.init.layers."""
    parts = {path: path.split(".") for path in paths}

    def ends(count: int, path: str) -> str:
        return ".".join(parts[path][-count:])

    names = {}
    for path in paths:
        counts = range(1, len(parts[path]) + 1)
        names[path] = next(
            (ends(count, path) for count in counts if sum(ends(count, path) == ends(count, one) for one in paths) == 1),
            path,
        )
    return names


def _label(named: Sequence[tuple[str, Any]]) -> str:
    """Return `16 layers` for a single count, else `layers 16, temperature 2`; a long label is cut and ends in a hash."""
    if len(named) == 1:
        ((name, value),) = named
        if isinstance(value, int) and not isinstance(value, bool) and name.isalpha() and name.endswith("s"):
            return f"{value} {name[:-1] if value == 1 else name}"
    label = ", ".join(f"{name} {_in_words(value)}" for name, value in named)
    if len(label) <= _LONGEST_LABEL:
        return label
    return f"{label[: _LONGEST_LABEL - 9].rstrip(', ')}… {_hash(named)}"


def _in_words(value: Any) -> str:
    """Return a value as YAML on one line, without ", ", which separates settings in a label."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.strip().removesuffix("\n...").replace(", ", ",")


def _slug(named: Sequence[tuple[str, Any]]) -> str:
    """Return a part of a folder's name that is unique among combinations of values of the same keys."""
    slug = "_".join(f"{_name_in_slug(name)}-{_value_in_slug(value)}" for name, value in named)
    return slug if len(slug) <= _LONGEST_SLUG else _hash(named)


def _name_in_slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def _value_in_slug(value: Any) -> str:
    """Return a value's text if it is unambiguous, short and plain; else its hash.

    Plain text has no underscore, which separates settings in a slug.
    """
    text = value if isinstance(value, str) else _canonical(value)
    if isinstance(value, str) and not _is_only_text(value):
        return _hash(value)
    return text if len(text) <= _LONGEST_VALUE and _PLAIN.fullmatch(text) else _hash(value)


def _is_only_text(value: str) -> bool:
    """Whether YAML reads this as a string: not "16", whose name would be that of the number, and no hash."""
    try:
        return bool(yaml.safe_load(value) == value) and not _looks_hashed(value)
    except yaml.YAMLError:
        return False


def _looks_hashed(value: str) -> bool:
    """Whether a text looks like the hash of another value."""
    return re.fullmatch(r"x[0-9a-f]{8}", value) is not None


def _hash(value: Any) -> str:
    return f"x{content_hash(_canonical(value))[:8]}"


def _canonical(value: Any) -> str:
    """Return a value as JSON, in which 1, 1.0 and "1" differ; a YAML date becomes its text."""
    return json.dumps(value, sort_keys=True, default=str)
