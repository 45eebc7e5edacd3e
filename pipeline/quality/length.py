"""Reject completions with too few or too many tokens.

- {kind: length, min_tokens: 2, max_tokens: 512}
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipeline.config import Settings, parse_options
from pipeline.quality.base import Filter
from pipeline.records import Completion


class LengthOptions(Settings):
    """Options of this filter, in tokens of the teacher."""

    min_tokens: int = Field(default=1, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)


def open_filter(options: dict[str, Any]) -> Filter:
    """See the module's docstring."""
    bounds = parse_options("quality.length", options, LengthOptions)

    def judge(completion: Completion) -> str | None:
        tokens = completion.completion_tokens
        if tokens < bounds.min_tokens:
            return f"{tokens} tokens, fewer than min_tokens={bounds.min_tokens}"
        if bounds.max_tokens is not None and tokens > bounds.max_tokens:
            return f"{tokens} tokens, more than max_tokens={bounds.max_tokens}"
        return None

    return judge
