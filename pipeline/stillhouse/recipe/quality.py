"""The `quality` part of a recipe: the filters that reject completions."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from stillhouse.settings import Settings


class FilterSettings(Settings):
    """One quality filter; all keys except `kind` are options, which the filter checks."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = Field(description="the filter; docs/quality.md lists them")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})
