"""Reject completions that did not end naturally: cut off at max_tokens, or stopped by a content filter.

- {kind: finish-reason}
- {kind: finish-reason, allowed: [stop, length]}
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from stillhouse.quality.base import Filter
from stillhouse.records import Completion, FinishReason
from stillhouse.settings import Settings, parse_options


class FinishReasonOptions(Settings):
    """Options of this filter."""

    allowed: tuple[FinishReason, ...] = Field(default=("stop",), description="finish reasons to keep")


def open_filter(options: dict[str, Any]) -> Filter:
    """Build the filter, see the module's docstring."""
    allowed = parse_options("quality.finish-reason", options, FinishReasonOptions).allowed

    def check(completion: Completion) -> str | None:
        if completion.finish_reason in allowed:
            return None
        tokens = completion.completion_tokens
        return f"ended by {completion.finish_reason}" + (f" after {tokens} tokens" if tokens is not None else "")

    return check
