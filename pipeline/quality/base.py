"""The seam of quality filters: a function that gives the reason to reject a completion, or None.

A filter is a module in this folder (or an entry point `stillhouse.filters`) with one function

    def open_filter(options: dict[str, Any]) -> Filter
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pipeline.quality
from pipeline.config import FilterSettings
from pipeline.plugins import load_kind
from pipeline.records import Completion

Filter = Callable[[Completion], str | None]  # the detail of a rejection, None to keep


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


def open_filters(settings: Sequence[FilterSettings]) -> list[NamedFilter]:
    """The filters of a recipe, in its order.

    Raises:
        RecipeError: there is no such kind, or an option is wrong.
    """
    opened = []
    for place, one in enumerate(settings):
        build: Callable[[dict[str, Any]], Filter] = load_kind(
            f"quality.{place}.kind", one.kind, pipeline.quality, "open_filter", group="stillhouse.filters"
        )
        opened.append(NamedFilter(one.kind, build(one.options)))
    return opened


def judge(completion: Completion, filters: Sequence[NamedFilter]) -> Verdict | None:
    """The first filter's reason to reject, or None: the completion is kept."""
    for one in filters:
        detail = one.judge(completion)
        if detail is not None:
            return Verdict(one.kind, detail)
    return None
