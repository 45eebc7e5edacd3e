"""Find a teacher, a filter, a loss or a metric by its `kind`.

A kind is a module in the folder of its group (`forward-kl` is student/losses/forward_kl.py), or an entry point of another
package (group `stillhouse.teachers`, `stillhouse.filters`, `stillhouse.losses` or `stillhouse.metrics`). There is no table
to edit, and a heavy library is imported only when its kind is used.

A plug-in's code may change while a recipe stays the same, so its hash is part of the key of what it shapes
(`plugin_code_key`): a filter's of a dataset version, a loss's of a student, a metric's of a report. A teacher's is not,
because every edit would request and pay for all answers again: the teacher's identity must include what shapes its answers.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Collection, Mapping
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from stillhouse.errors import RecipeError
from stillhouse.plugin_code import plugin_code
from stillhouse.settings import nearest

TEACHERS, FILTERS = "stillhouse.teachers", "stillhouse.filters"
LOSSES, METRICS = "stillhouse.losses", "stillhouse.metrics"
_DEFINES = re.compile(r"^(def )?(open_teacher|open_filter|open_metric|divergence|FORMAT)\b", re.MULTILINE)


def load_kind(setting: str, kind: str, package: ModuleType, attribute: str, group: str) -> Any:
    """Return `attribute` of the module that `kind` names, or the object of the entry point `kind` in `group`.

    Raises:
        RecipeError: the kind does not exist (the message names `setting`), or a library that it needs is not installed.
    """
    built_in = built_in_kinds(package)
    plugins = _plugin_kinds(group)
    try:
        if kind in plugins:
            return plugins[kind].load()
        if kind in built_in:
            return getattr(importlib.import_module(f"{package.__name__}.{built_in[kind]}"), attribute)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        raise RecipeError(
            f"it needs the library {library!r}, which is not installed",
            setting=setting,
            value=kind,
            fix=f"run `pip install {library}`",
        ) from error
    raise _unknown_kind(setting, kind, {*built_in, *plugins})


def check_kind_exists(setting: str, kind: str, package: ModuleType, group: str) -> None:
    """Refuse a kind that does not exist, without importing its module.

    Raises:
        RecipeError: the kind does not exist; the message names `setting` and the most similar kind.
    """
    known = {*built_in_kinds(package), *_plugin_kinds(group)}
    if kind not in known:
        raise _unknown_kind(setting, kind, known)


def _unknown_kind(setting: str, kind: str, known: Collection[str]) -> RecipeError:
    return RecipeError("there is no such kind", setting=setting, value=kind, fix=nearest(kind, sorted(known)))


def plugin_code_key(group: str, kind: str) -> dict[str, dict[str, str]]:
    """Return what a key must include about a plug-in's code, as {"code": ...}; empty for a kind of Stillhouse."""
    point = _plugin_kinds(group).get(kind)
    return {} if point is None else {"code": plugin_code(point)}


def _plugin_kinds(group: str) -> Mapping[str, EntryPoint]:
    """Return the kinds of other packages."""
    return _entry_points(group, tuple(sys.path))


@lru_cache(maxsize=16)
def _entry_points(group: str, path: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    """Return the entry points that the packages on this import path have: reading them all takes 50 ms."""
    return {point.name: point for point in entry_points(group=group)}


def built_in_kinds(package: ModuleType) -> dict[str, str]:
    """Return {kind: module name} for every module of a package that defines what a kind is; none of them is imported."""
    return dict(_kinds_in(Path(package.__path__[0])))


@cache
def _kinds_in(folder: Path) -> dict[str, str]:
    names = (
        module.name for module in pkgutil.iter_modules([str(folder)]) if not module.ispkg and module.name != "base"
    )
    return {
        name.replace("_", "-"): name for name in names if _DEFINES.search((folder / f"{name}.py").read_text("utf-8"))
    }
