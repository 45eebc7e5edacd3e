"""Reject completions that are too short or too long.

- {kind: length, min_tokens: 2, max_tokens: 512}
- {kind: length, max_chars: 4000}

Tokens are counted by the teacher. If a server reports no count, a bound in tokens cannot be checked and the completion is
rejected; bounds in characters work with every teacher.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from stillhouse.quality.base import Filter
from stillhouse.records import Completion
from stillhouse.settings import Settings, parse_options


class LengthOptions(Settings):
    """Options of this filter: at least one bound."""

    min_tokens: int | None = Field(default=None, ge=0, description="fewest tokens to keep")
    max_tokens: int | None = Field(default=None, ge=1, description="most tokens to keep")
    min_chars: int | None = Field(default=None, ge=0, description="fewest characters to keep")
    max_chars: int | None = Field(default=None, ge=1, description="most characters to keep")

    @model_validator(mode="after")
    def _check_bounds(self) -> LengthOptions:
        if self == LengthOptions.model_construct():
            raise ValueError("there is no bound: set at least one of min_tokens, max_tokens, min_chars and max_chars")
        for unit in ("tokens", "chars"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if low is not None and high is not None and low > high:
                raise ValueError(
                    f"min_{unit} is {low} and max_{unit} is {high}, so no completion would be kept: swap or change them"
                )
        return self


def open_filter(options: dict[str, Any]) -> Filter:
    """Build the filter, see the module's docstring."""
    bounds = parse_options("quality.length", options, LengthOptions)

    def check(completion: Completion) -> str | None:
        return _bound_violation(
            "tokens", completion.completion_tokens, bounds.min_tokens, bounds.max_tokens
        ) or _bound_violation("chars", len(completion.text), bounds.min_chars, bounds.max_chars)

    return check


def _bound_violation(unit: str, count: int | None, low: int | None, high: int | None) -> str | None:
    if count is None and (low is not None or high is not None):
        return f"the teacher reports no number of {unit}; use min_chars and max_chars instead"
    if count is not None and low is not None and count < low:
        return f"{count} {unit}, fewer than min_{unit}={low}"
    if count is not None and high is not None and count > high:
        return f"{count} {unit}, more than max_{unit}={high}"
    return None
