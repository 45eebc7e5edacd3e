"""Hooks that MkDocs calls while it builds the site (mkdocs.yml)."""

import re
from typing import Any

_OUT_OF_DOCS = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace a link to a file outside docs/ by its text: such links work in the repository, but not on the site."""
    return _OUT_OF_DOCS.sub(r"\1", markdown)
