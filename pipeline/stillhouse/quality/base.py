"""The interface of quality filters: functions that return the reason to reject a completion, or None to keep it.

A filter is a module in this folder (or an entry point `stillhouse.filters`) with one function

    def open_filter(options: dict[str, Any]) -> Filter

A filter sees the completions of a dataset one at a time in a fixed order: shard by shard, with the samples of one prompt
consecutive. Most filters depend on one completion only. A filter that compares a completion with earlier ones (duplicates,
best-of) is an object with a method `record_kept`, which is called for every completion that was finally kept, by this run
or by an earlier interrupted run. So it decides the same after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import stillhouse.quality
from stillhouse.errors import RecipeError
from stillhouse.plugins import FILTERS, load_kind
from stillhouse.recipe.faults import raise_all
from stillhouse.recipe.quality import FilterSettings
from stillhouse.records import Completion

_HOOK_OF_0_1 = "remember"

Filter = Callable[[Completion], str | None]  # returns the detail of a rejection, or None to keep


@runtime_checkable
class StatefulFilter(Protocol):
    """A filter whose verdict depends on the completions kept before."""

    def record_kept(self, completion: Completion) -> None:
        """Record a kept completion; called once for each completion that all filters kept, in the dataset's order."""


@dataclass(frozen=True)
class NamedFilter:
    """A filter with its kind, under which its rejections are counted."""

    kind: str
    check: Filter


@dataclass(frozen=True)
class Verdict:
    """The rejection of a completion: the filter's kind and the detail."""

    reason: str
    detail: str


def open_filters(settings: Sequence[FilterSettings], path: str = "quality") -> list[NamedFilter]:
    """Open the filters of a recipe, in order; `path` is the path of the setting, for messages.

    Raises:
        RecipeError: a filter's kind does not exist, an option is wrong, or a plug-in was written for version 0.1; the error
            lists all faults.
    """
    opened: list[NamedFilter] = []
    faults: list[RecipeError] = []
    for index, one in enumerate(settings):
        try:
            build: Callable[[dict[str, Any]], Filter] = load_kind(
                f"{path}.{index}.kind", one.kind, stillhouse.quality, "open_filter", group=FILTERS
            )
            check = build(one.options)
            if hasattr(check, _HOOK_OF_0_1) and not isinstance(check, StatefulFilter):
                raise RecipeError(
                    f"the plug-in's filter has a method `{_HOOK_OF_0_1}`, the name of version 0.1, and would receive no "
                    "kept completion",
                    setting=f"{path}.{index}.kind", value=one.kind,
                    fix=f"rename the method `{_HOOK_OF_0_1}` to `record_kept`",
                )  # fmt: skip
            opened.append(NamedFilter(one.kind, check))
        except RecipeError as error:
            faults.append(error)
    raise_all(faults)
    return opened


def apply_filters(completion: Completion, filters: Sequence[NamedFilter]) -> Verdict | None:
    """Return the first rejection by a filter; or None, and the completion is kept and recorded."""
    verdict = first_rejection(completion, filters)
    if verdict is None:
        record_kept(completion, filters)
    return verdict


def first_rejection(completion: Completion, filters: Sequence[NamedFilter]) -> Verdict | None:
    """Return the first rejection by a filter, or None; nothing is recorded."""
    for one in filters:
        detail = one.check(completion)
        if detail is not None:
            return Verdict(one.kind, detail)
    return None


def record_kept(completion: Completion, filters: Sequence[NamedFilter]) -> None:
    """Pass a kept completion to the filters that have `record_kept`."""
    for one in filters:
        check: object = one.check
        if isinstance(check, StatefulFilter):
            check.record_kept(completion)
