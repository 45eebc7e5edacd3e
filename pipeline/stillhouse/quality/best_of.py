"""Of several samples of a prompt, keep the first (or the first `keep`) that all verifiers pass.

label: {samples: 8}
quality:
  - {kind: finish-reason}
  - kind: best-of
    keep: 1
    verifiers:
      - {kind: reference-match, how: number}

A verifier is any filter. A sample that another filter of the recipe rejects does not count as kept, whether that filter
runs before or after this one; so without `verifiers`, the first sample that the other filters pass is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from stillhouse.quality.base import NamedFilter, first_rejection, open_filters, record_kept
from stillhouse.recipe.quality import FilterSettings
from stillhouse.records import Completion
from stillhouse.settings import Settings, parse_options


class BestOfOptions(Settings):
    """Options of this filter."""

    keep: int = Field(default=1, ge=1, description="samples to keep per prompt")
    verifiers: tuple[FilterSettings, ...] = Field(
        default=(), description="filters that judge the samples, as in `quality`"
    )

    @field_validator("verifiers")
    @classmethod
    def _no_best_of_inside(cls, verifiers: tuple[FilterSettings, ...]) -> tuple[FilterSettings, ...]:
        if any(one.kind == "best-of" for one in verifiers):
            raise ValueError(
                "best-of cannot be a verifier of best-of: raise `keep`, or list its verifiers here instead"
            )
        return verifiers


def open_filter(options: dict[str, Any]) -> BestOf:
    """Build the filter, see the module's docstring."""
    given = parse_options("quality.best-of", options, BestOfOptions)
    return BestOf(given.keep, open_filters(given.verifiers, "quality.best-of.verifiers"))


class BestOf:
    """Counts the kept samples of one prompt at a time, since the samples of a prompt are consecutive."""

    def __init__(self, keep: int, verifiers: Sequence[NamedFilter]) -> None:
        self._keep = keep
        self._verifiers = verifiers
        self._prompt = ""
        self._kept: dict[str, int] = {}  # completion id -> sample number, of this prompt

    def __call__(self, completion: Completion) -> str | None:
        verdict = first_rejection(completion, self._verifiers)
        if verdict is not None:
            return f"the verifier {verdict.reason} rejects it: {verdict.detail}"
        if completion.prompt.id != self._prompt or completion.id in self._kept or len(self._kept) < self._keep:
            return None
        samples = ", ".join(map(str, self._kept.values()))
        return f"this prompt already has keep={self._keep} kept: sample {samples}"

    def record_kept(self, completion: Completion) -> None:
        """Count a kept sample."""
        if completion.prompt.id != self._prompt:
            self._prompt, self._kept = completion.prompt.id, {}
        self._kept[completion.id] = completion.sample
        record_kept(completion, self._verifiers)
