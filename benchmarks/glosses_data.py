"""Nouns and their definitions from WordNet, as prompts with references.

    apt-get install wordnet-base && python -m benchmarks.glosses_data          # data/glosses/words.jsonl

    {"word": "otter", "kind": "animal", "reference": "freshwater carnivorous mammal having webbed and clawed feet"}

The words are those of WordNet 3.0 (Debian's package wordnet-base) for animals, artifacts, body parts, foods and plants:
single lower-case words, each with the definition of its first sense if that has 3 to 14 words, without its examples. They
are sorted by hash, so that the first N are a random sample, and the sha256 of all of them says whether two machines had the
same.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

RECIPE = "flows/recipes/glosses.yaml"
FOLDER = Path("data/glosses")
WORDS = FOLDER / "words.jsonl"
NOUNS, INDEX = Path("/usr/share/wordnet/data.noun"), Path("/usr/share/wordnet/index.noun")
KINDS = {"05": "animal", "06": "artifact", "08": "body part", "13": "food", "20": "plant"}  # lexicographer files
SHORTEST, LONGEST = 3, 14  # words of a definition
_WORD = re.compile(r"[a-z]{3,}")


def definitions(data: str) -> dict[str, tuple[str, str]]:
    """Return kind and definition by the offset of a sense."""
    found = {}
    for line in data.splitlines():
        fields, mark, gloss = line.partition(" | ")
        if not mark or line.startswith(" "):
            continue
        offset, file = fields.split(" ", 2)[:2]
        definition = re.split(r"[;(]", gloss)[0].strip()
        if file in KINDS and SHORTEST <= len(definition.split()) <= LONGEST:
            found[offset] = (KINDS[file], definition)
    return found


def words(data: str, index: str) -> list[dict[str, str]]:
    """Return the rows of WordNet's files data.noun and index.noun, sorted by hash."""
    known = definitions(data)
    rows = []
    for line in index.splitlines():
        if line.startswith(" "):
            continue
        lemma, _, _, pointers, *rest = line.split()
        first = rest[
            int(pointers) + 2
        ]  # after the pointers: the numbers of senses and of tagged ones, then the offsets
        if _WORD.fullmatch(lemma) and first in known:
            kind, definition = known[first]
            rows.append({"word": lemma, "kind": kind, "reference": definition})
    return sorted(rows, key=lambda row: hashlib.sha256(row["word"].encode()).digest())


def prepare() -> str:
    """Write the rows; return their sha256.

    Raises:
        SystemExit: WordNet is not installed.
    """
    if not NOUNS.is_file():
        sys.exit(f"{NOUNS} does not exist: run `apt-get install wordnet-base`")
    rows = words(NOUNS.read_text("utf-8"), INDEX.read_text("utf-8"))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    FOLDER.mkdir(parents=True, exist_ok=True)
    WORDS.write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    print(f"{len(rows):,} words in {WORDS}, sha256 {digest[:12]}")
    return digest


if __name__ == "__main__":
    prepare()
