"""Reject completions that repeat themselves: a student trained on loops generates loops.

- {kind: repetition}
- {kind: repetition, share: 0.3}

A completion is rejected if at least `share` of its word 4-grams occurred earlier in it (`stillhouse.text.repeated_share`).
The report measures repetition of teacher and student in the same way.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from stillhouse.quality.base import Filter
from stillhouse.records import Completion
from stillhouse.settings import Settings, parse_options
from stillhouse.text import GRAM, REPEATED_SHARE, repeated_share


class RepetitionOptions(Settings):
    """Options of this filter."""

    share: float = Field(default=REPEATED_SHARE, gt=0, le=1, description="of repeated 4-grams, from which to reject")


def open_filter(options: dict[str, Any]) -> Filter:
    """Build the filter, see the module's docstring."""
    limit = parse_options("quality.repetition", options, RepetitionOptions).share

    def check(completion: Completion) -> str | None:
        repeated = repeated_share(completion.text)
        return f"{repeated:.0%} of its {GRAM}-word n-grams are repeats" if repeated >= limit else None

    return check
