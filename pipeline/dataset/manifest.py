"""manifest.json: what a dataset version is, where it came from, and the checksum of every file.

It is written last: a version without one does not exist.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import SamplingSettings, SoftSettings
from pipeline.durable import write_atomically
from pipeline.errors import DatasetMissing, DatasetRefused
from pipeline.records import FORMAT_VERSION, TeacherIdentity

FILE_NAME = "manifest.json"


FileKind = Literal["train", "validation", "rejected"]
MadeBy = Literal["label", "merge", "filter", "split", "import"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileEntry(_Part):
    """One Parquet file of the version; `path` is relative to its folder."""

    path: str
    kind: FileKind
    rows: int
    bytes: int
    sha256: str


class Totals(_Part):
    """What was read and written for all rows together, rejected ones included."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None  # of the rows' own answers
    spent_usd: float | None = None  # for this dataset so far, attempts that gave nothing and earlier versions included


class Manifest(_Part):
    """See the module's docstring."""

    format_version: int
    name: str
    version: int
    created_at: str  # ISO 8601, UTC
    stillhouse: str  # the version that wrote it
    made_by: MadeBy = "label"
    how: str = ""  # in words, of a version that was not labelled: the filter's condition, the imported file
    licence: str | None = None  # an SPDX name, or what the hub's card takes
    teacher: TeacherIdentity
    more_teachers: tuple[TeacherIdentity, ...] = ()  # of a merged text dataset
    mode: Literal["generate", "score"] | None  # None: not known, or not one
    sampling: SamplingSettings | None  # None: not known, or not one
    soft: SoftSettings | None
    plan_sha256: str  # names the requests, their order and splits, and the filters
    prompts_sha256: str  # names the prompts as they were read, references included
    prompts: int
    duplicate_prompts: int  # in the source; each was asked once
    rows: dict[str, int]  # split -> rows
    rejected: dict[str, int]  # reason -> rows
    totals: Totals
    parents: tuple[str, ...]  # versions whose rows or answers were carried over, as name/v001
    recipe: dict[str, Any]
    files: tuple[FileEntry, ...]

    @property
    def label(self) -> str:
        return f"{self.name}/{version_label(self.version)}"


def version_label(version: int) -> str:
    """A version's folder name: 1 -> v001."""
    return f"v{version:03d}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a dataset version's folder.

    Raises:
        DatasetMissing: there is none.
        DatasetRefused: it is damaged, or of a format that this release cannot read.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise DatasetMissing(
            f"{folder} holds no finished dataset: it has no {FILE_NAME}. Run `stillhouse label` to the end."
        )
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DatasetRefused(f"{file} is damaged: {place}: {first['msg']}. Restore it, or label again.") from None
    if manifest.format_version != FORMAT_VERSION:
        raise DatasetRefused(
            f"{file} has format version {manifest.format_version}; this release reads version {FORMAT_VERSION}. "
            "Install the release of Stillhouse that wrote it, or label again."
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make the version exist."""
    write_atomically(folder / FILE_NAME, manifest.model_dump_json(indent=2).encode() + b"\n")
