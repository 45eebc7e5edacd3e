"""Look up the text of token ids, without loading a model and without the network.

    >>> texts = find_token_texts(dataset.manifest)
    >>> texts(284)                                           # no tokenizer was found; else " ="
    '#284'

The tokenizer of a dataset's teacher is looked up in the teacher's folder that the manifest names, then in the hub's cache.
It is used only if its checksum matches the manifest, since another tokenizer would give wrong texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from stillhouse.dataset.manifest import Manifest
from stillhouse.errors import TeacherUnavailable, UsageError
from stillhouse.models.files import ModelFiles

_FILE = "tokenizer.json"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte in SentencePiece's notation


class TokenTexts:
    """The text of any token id; `found` is whether a tokenizer was found, `note` a remark to show about it."""

    def __init__(self, text: Callable[[int], str] | None, note: str) -> None:
        self.found = text is not None
        self.note = note
        self._text = text

    def __call__(self, token_id: int) -> str:
        return self._text(token_id) if self._text else f"#{token_id}"


def find_token_texts(manifest: Manifest, tokenizer: Path | None = None) -> TokenTexts:
    """Return the token texts of a dataset, from the folder `tokenizer` or else from the teacher's files.

    Raises:
        UsageError: the folder `tokenizer` has no tokenizer, or not the teacher's.
    """
    wanted = manifest.teacher.tokenizer_sha256
    if tokenizer is not None:
        folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
        if not (folder / _FILE).is_file():
            raise UsageError(
                f"the folder has no {_FILE}", setting="--tokenizer", value=str(tokenizer), fix="name a model's folder"
            )
        if wanted and _tokenizer_sha256(folder) != wanted:
            raise UsageError(
                f"{manifest.label} was labelled with another tokenizer",
                setting="--tokenizer",
                value=str(tokenizer),
                fix="name the folder of its teacher",
            )
        return TokenTexts(_reader(folder), f"tokens are shown as in {folder}")
    found = _teacher_folder(manifest)
    if found is None:
        return TokenTexts(
            None,
            f"the teacher's tokenizer ({manifest.teacher.model or 'unknown model'}) was not found, so tokens are "
            "shown as ids",
        )
    if not wanted or _tokenizer_sha256(found) != wanted:
        return TokenTexts(None, f"{found} has another tokenizer than these labels, so tokens are shown as ids")
    return TokenTexts(_reader(found), "")


def _teacher_folder(manifest: Manifest) -> Path | None:
    name = manifest.teacher.model
    if not name:
        return None
    if (Path(name) / _FILE).is_file():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, _FILE, revision=manifest.teacher.revision)
    except (HFValidationError, ValueError):
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _tokenizer_sha256(folder: Path) -> str | None:
    try:
        return ModelFiles(str(folder), folder).tokenizer_sha256
    except (TeacherUnavailable, OSError, ValueError, KeyError):
        return None


def _reader(folder: Path) -> Callable[[int], str]:
    """Return a function from token id to text; it decodes byte-level vocabularies and SentencePiece marks."""
    from tokenizers import Tokenizer

    file = folder / _FILE
    tokenizer = Tokenizer.from_file(str(file))
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    added = {token["id"]: str(token["content"]) for token in config.get("added_tokens") or []}
    of_bytes = "ByteLevel" in json.dumps([config.get("decoder"), config.get("pre_tokenizer")])
    bytes_of = {character: byte for byte, character in enumerate(_byte_characters())}

    @lru_cache(maxsize=1 << 16)
    def text(token_id: int) -> str:
        if token_id in added:
            return added[token_id]
        token: str | None = tokenizer.id_to_token(token_id)
        if token is None:
            return f"#{token_id}"  # an id in the padding of the vocabulary
        if of_bytes and all(character in bytes_of for character in token):
            return _decoded(bytes(bytes_of[character] for character in token))
        if byte := _BYTE.fullmatch(token):
            return _decoded(bytes.fromhex(byte[1]))
        return token.replace("▁", " ")

    return text


def _decoded(content: bytes) -> str:
    """Decode UTF-8, or show the bytes in hex if a character spans several tokens."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return f"⟨{content.hex(' ')}⟩"


def _byte_characters() -> list[str]:
    """Return the character for each byte in byte-level vocabularies (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(0x100)]
