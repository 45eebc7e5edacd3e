"""Every message that docs/troubleshooting.md explains is one that the code can print."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.paths import ROOT

HEADINGS = re.findall(r"^### `(.*)`$", (ROOT / "docs/troubleshooting.md").read_text("utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def texts() -> str:
    """All strings of the code, one a line."""

    def found() -> Iterator[str]:
        for folder in ("pipeline", "flows"):
            for file in (ROOT / folder).rglob("*.py"):
                for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        yield node.value

    return "\n".join(found())


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_message_is_one_of_the_code(heading: str, texts: str) -> None:
    assert heading in texts


def test_there_are_messages() -> None:
    assert len(HEADINGS) > 15
