"""One-line descriptions of Debian's packages and their sections, as prompts with references.

    apt-get update && python -m benchmarks.sections_data          # data/sections/packages.jsonl

    {"name": "gupnp-tools", "description": "tools for testing UPnP devices and control points", "reference": "net"}

The rows are those of Debian 12 (main), read with `apt-cache dumpavail`: no other host than that of the packages is needed.
Sections that a name gives away (libraries, languages, documentation, fonts, kernels) are left out, and those of fewer than
300 packages; of packages with the same description one is taken. The rows are sorted by hash, so that the first N are a
random sample, and the sha256 of all of them says whether two machines had the same. The descriptions belong to their
packages' authors and are not copied into this project.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

RECIPE = "flows/recipes/sections.yaml"
FOLDER = Path("data/sections")
PACKAGES = FOLDER / "packages.jsonl"
GIVEN_AWAY = frozenset(  # by the name of the package
    [
        *(
            "debian-installer",
            "debug",
            "doc",
            "fonts",
            "gnu-r",
            "golang",
            "haskell",
            "introspection",
            "java",
            "javascript",
        ),
        *(
            "kernel",
            "libdevel",
            "libs",
            "lisp",
            "localization",
            "metapackages",
            "oldlibs",
            "ocaml",
            "perl",
            "php",
            "python",
        ),
        *("raku", "ruby", "rust", "tasks", "cli-mono", "zope"),
    ]
)
LEAST = 300  # packages of a section
_FIELD = re.compile(r"^(Package|Section|Description|Description-en): (.*)$", re.MULTILINE)


def packages(stanzas: str) -> list[dict[str, str]]:
    """Return the rows of an index of packages, sorted by hash."""
    found: dict[str, dict[str, str]] = {}
    for fields in _stanzas(stanzas):
        section = fields["section"]
        if "/" not in section and section not in GIVEN_AWAY:
            found.setdefault(
                fields["description"],
                {"name": fields["name"], "description": fields["description"], "reference": section},
            )
    sizes = Counter(row["reference"] for row in found.values())
    rows = [row for row in found.values() if sizes[row["reference"]] >= LEAST]
    return sorted(rows, key=lambda row: hashlib.sha256(f"{row['name']}\n{row['description']}".encode()).digest())


def _stanzas(index: str) -> Iterator[dict[str, str]]:
    for stanza in index.split("\n\n"):
        fields = {name.removesuffix("-en").lower(): value.strip() for name, value in _FIELD.findall(stanza)}
        if {"package", "section", "description"} <= fields.keys() and fields["description"]:
            yield {
                "name": fields["package"],
                "section": fields["section"],
                "description": fields["description"],
            }


def prepare() -> str:
    """Write the rows; return their sha256.

    Raises:
        SystemExit: this machine has no index of Debian's packages.
    """
    try:
        index = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"apt-cache dumpavail failed ({error}): the prompts of this experiment come from Debian's index")
    rows = packages(index)
    if len(rows) < 10_000:
        sys.exit(f"apt-cache dumpavail lists {len(rows):,} usable packages: run `apt-get update` first")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    FOLDER.mkdir(parents=True, exist_ok=True)
    PACKAGES.write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    sections = len({row["reference"] for row in rows})
    print(f"{len(rows):,} packages of {sections} sections in {PACKAGES}, sha256 {digest[:12]}")
    return digest


if __name__ == "__main__":
    prepare()
