"""Find a format of other projects by its name: a module of formats/, or an entry point of another package."""

from __future__ import annotations

from stillhouse.exchange import formats
from stillhouse.exchange.base import Format
from stillhouse.plugins import load_kind


def find_format(setting: str, name: str) -> Format:
    """A format by its name; `setting` is named where there is none.

    Raises:
        UsageError: there is none.
    """
    found: Format = load_kind(setting, name, formats, "FORMAT", "stillhouse.formats")
    return found
