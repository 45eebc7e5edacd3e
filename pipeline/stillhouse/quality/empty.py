"""Reject completions without any letter or digit.

- {kind: empty}
"""

from __future__ import annotations

from typing import Any

from stillhouse.quality.base import Filter
from stillhouse.settings import Settings, parse_options


def open_filter(options: dict[str, Any]) -> Filter:
    """Build the filter, see the module's docstring."""
    parse_options("quality.empty", options, Settings)
    return lambda completion: None if any(map(str.isalnum, completion.text)) else "the text is empty"
