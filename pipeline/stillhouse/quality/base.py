"""The seam of quality filters: what gives the reason to reject a completion, or None.

A filter is a module in this folder (or an entry point `stillhouse.filters`) with one function

    def open_filter(options: dict[str, Any]) -> Filter

A filter sees the completions of a dataset one after another in a fixed order: shard by shard, the samples of one prompt
side by side. Most are functions of one completion. One that compares a completion with those before it (duplicates,
best-of) is an object that also has `remember`: it is told of every completion that was kept in the end, by this run or by
an earlier one that was stopped, and so decides the same wherever a run was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import stillhouse.quality
from stillhouse.errors import RecipeError
from stillhouse.plugins import FILTERS, load_kind
from stillhouse.recipe.faults import raise_all
from stillhouse.recipe.load import FilterSettings
from stillhouse.records import Completion

Filter = Callable[[Completion], str | None]  # the detail of a rejection, None to keep


@runtime_checkable
class Remembers(Protocol):
    """A filter whose verdict depends on what was kept before."""

    def remember(self, completion: Completion) -> None:
        """Called once for each completion that every filter kept, in the dataset's order."""


@dataclass(frozen=True)
class NamedFilter:
    """A filter with the name that its rejections are counted under."""

    kind: str
    judge: Filter


@dataclass(frozen=True)
class Verdict:
    """Why a completion was rejected."""

    reason: str
    detail: str


def open_filters(settings: Sequence[FilterSettings], where: str = "quality") -> list[NamedFilter]:
    """The filters of a recipe, in its order; `where` is their place in it.

    Raises:
        RecipeError: there is no such kind, or an option is wrong; all that are wrong are told.
    """
    opened: list[NamedFilter] = []
    faults: list[RecipeError] = []
    for place, one in enumerate(settings):
        try:
            build: Callable[[dict[str, Any]], Filter] = load_kind(
                f"{where}.{place}.kind", one.kind, stillhouse.quality, "open_filter", group=FILTERS
            )
            opened.append(NamedFilter(one.kind, build(one.options)))
        except RecipeError as error:
            faults.append(error)
    raise_all(faults)
    return opened


def judge(completion: Completion, filters: Sequence[NamedFilter]) -> Verdict | None:
    """The first filter's reason to reject, or None: the completion is kept, and remembered."""
    verdict = first_rejection(completion, filters)
    if verdict is None:
        remember(completion, filters)
    return verdict


def first_rejection(completion: Completion, filters: Sequence[NamedFilter]) -> Verdict | None:
    """The first filter's reason to reject, or None; nothing is remembered."""
    for one in filters:
        detail = one.judge(completion)
        if detail is not None:
            return Verdict(one.kind, detail)
    return None


def remember(completion: Completion, filters: Sequence[NamedFilter]) -> None:
    """Tell the filters that look back of a completion that was kept."""
    for one in filters:
        asked: object = one.judge
        if isinstance(asked, Remembers):
            asked.remember(completion)
