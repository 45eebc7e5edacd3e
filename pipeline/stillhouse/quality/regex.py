"""Keep completions that a regular expression finds, or with `reject` those that it does not.

- {kind: regex, mode: fullmatch, pattern: "(positive|negative|neutral)"}
- {kind: regex, pattern: "(?i)https?://", reject: true}

The expression is Python's `re`; one that takes exponential time on some text takes it here too.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from stillhouse.quality.base import Filter
from stillhouse.records import Completion
from stillhouse.settings import Settings, parse_options
from stillhouse.text import shortened


class RegexOptions(Settings):
    """Options of this filter."""

    pattern: re.Pattern[str]
    mode: Literal["search", "fullmatch"] = "search"  # anywhere in the text, or the whole of it
    reject: bool = False  # reject what matches instead of what does not


def open_filter(options: dict[str, Any]) -> Filter:
    """See the module's docstring."""
    given = parse_options("quality.regex", options, RegexOptions)
    find = given.pattern.search if given.mode == "search" else given.pattern.fullmatch
    pattern = shortened(given.pattern.pattern)

    def judge(completion: Completion) -> str | None:
        found = find(completion.text)
        if (found is not None) != given.reject:
            return None
        return f"{shortened(found.group())} matches {pattern}" if found else f"the text does not match {pattern}"

    return judge
