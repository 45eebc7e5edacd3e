"""Find an exchange format by its name: a module of formats/, or an entry point of another package."""

from __future__ import annotations

from stillhouse.exchange import formats
from stillhouse.exchange.base import Format
from stillhouse.plugins import load_kind


def find_format(setting: str, name: str) -> Format:
    """Return the format with this name; `setting` is the option to name in the error message.

    Raises:
        UsageError: no format has this name.
    """
    found: Format = load_kind(setting, name, formats, "FORMAT", "stillhouse.formats")
    return found
