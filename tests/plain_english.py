"""Look for words that the project does not use (words.toml) in docs, docstrings, comments and messages: `make check`.

python -m tests.plain_english
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.paths import ROOT

WORDS = ROOT / "tests/words.toml"
_GENERATED = re.compile(r"<!-- begin .*?<!-- end [^>]*-->|```.*?```|`[^`\n]*`", re.DOTALL)


def patterns() -> dict[re.Pattern[str], str]:
    """Return the words, as regular expressions, with what to write instead."""
    table: dict[str, str] = tomllib.loads(WORDS.read_text("utf-8"))
    return {re.compile(rf"\b({words})\b", re.IGNORECASE): plain for words, plain in table.items()}


def prose(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the prose of a file with its line numbers: comments and strings of Python, all of Markdown but code."""
    text = file.read_text("utf-8")
    if file.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from enumerate(node.value.split("\n"), start=node.lineno)
    else:
        kept = _GENERATED.sub(lambda found: "\n" * found[0].count("\n"), text)
        yield from enumerate(kept.split("\n"), start=1)


def files() -> Iterator[Path]:
    """Yield what users and contributors read: the package, the flows, the recipes and the pages."""
    for pattern in (
        "pipeline/**/*.py",
        "flows/**/*.py",
        "flows/**/*.yaml",
        "docs/*.md",
        "README.md",
        "CONTRIBUTING.md",
    ):
        yield from sorted(ROOT.glob(pattern))


def found() -> Iterator[str]:
    """Yield a line for each word that is to go."""
    words = patterns()
    for file in files():
        for number, line in sorted(set(prose(file))):
            for pattern, plain in words.items():
                if hit := pattern.search(line):
                    yield f"{file.relative_to(ROOT)}:{number}: {hit[0]!r} -> {plain}"


def main() -> None:
    """Print what is found, and end with status 1 where anything is."""
    lines = list(found())
    print("\n".join(lines))
    sys.exit(f"{len(lines)} words that are not plain (tests/words.toml)" if lines else 0)


if __name__ == "__main__":
    main()
