"""What MkDocs changes while it builds the site (mkdocs.yml)."""

import re
from typing import Any

_OUT_OF_DOCS = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files outside docs/ work in the repository and not on the site: keep their text alone."""
    return _OUT_OF_DOCS.sub(r"\1", markdown)
