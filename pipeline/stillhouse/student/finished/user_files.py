"""Protect users' own files in a student's folder: they are never removed, and a folder of them is never replaced."""

from __future__ import annotations

import re
from pathlib import Path

from stillhouse.errors import UsageError

_OURS = re.compile(  # a model's files, and those that Stillhouse adds
    r".*\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?|(.*_)?config\.json|tokenizer.*"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|.*\.model|.*\.jinja"
    r"|additional_chat_templates|.*\.py|__pycache__|README\.md|recipe\.yaml|student\.json|start\.json|vocabulary\.json"
    r"|adapter|int8|\.gitattributes|\..*\.\d+\.tmp"
)


def refuse_to_replace(folder: Path, card: str) -> None:
    """Refuse a student's folder that holds something else.

    Raises:
        UsageError: the folder has files, but not the card that every student has.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / card).exists():
        raise UsageError(
            f"the student's folder {folder} contains other files and no {card}",
            fix="move it elsewhere, or change the recipe's name",
        )


def move_user_files(retired: Path, folder: Path) -> None:
    """Move the user's own files from the folder of an earlier student to that of the new one."""
    for entry in retired.iterdir():
        if not _OURS.fullmatch(entry.name) and not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
