"""Keep completions that match a regular expression or, with `reject`, those that do not.

- {kind: regex, mode: fullmatch, pattern: "(positive|negative|neutral)"}
- {kind: regex, pattern: "(?i)https?://", reject: true}

The syntax is that of Python's `re`; there is no protection against expressions that take exponential time on some texts.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field

from stillhouse.quality.base import Filter
from stillhouse.records import Completion
from stillhouse.settings import Settings, parse_options
from stillhouse.text import short_quote


class RegexOptions(Settings):
    """Options of this filter."""

    pattern: re.Pattern[str] = Field(description="a regular expression of Python's `re`")
    mode: Literal["search", "fullmatch"] = Field(
        default="search", description="match anywhere in the text, or the whole text"
    )
    reject: bool = Field(default=False, description="reject completions that match instead of those that do not")


def open_filter(options: dict[str, Any]) -> Filter:
    """Build the filter, see the module's docstring."""
    given = parse_options("quality.regex", options, RegexOptions)
    find = given.pattern.search if given.mode == "search" else given.pattern.fullmatch
    pattern = short_quote(given.pattern.pattern)

    def check(completion: Completion) -> str | None:
        found = find(completion.text)
        if (found is not None) != given.reject:
            return None
        return f"{short_quote(found.group())} matches {pattern}" if found else f"the text does not match {pattern}"

    return check
