"""manifest.json: the description and provenance of a dataset version, and the checksum of every file.

It is written last: a version without a manifest does not exist. Its last entries are its seal: the checksums of the files
without rows (card, recipe), and a checksum of the manifest itself. verify.py checks a folder against all of it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from stillhouse.errors import DatasetMissing, DatasetRefused
from stillhouse.inputs.plain_json import to_json
from stillhouse.recipe.label import SamplingSettings, SoftSettings
from stillhouse.records import FORMAT_VERSION, RECIPE_FILE, TeacherIdentity
from stillhouse.storage.durable import sha256_of_file, write_atomically
from stillhouse.storage.location import Location

FILE_NAME = "manifest.json"
EXTRA_FILES = ("README.md", RECIPE_FILE)  # files of a version besides the manifest and the Parquet files

_DIGEST = '"manifest_sha256": "'  # precedes the manifest's own checksum, which is its last value
_NO_DIGEST = "0" * 64  # placeholder for the checksum while it is computed

FileKind = Literal["train", "validation", "rejected"]
MadeBy = Literal["label", "merge", "filter", "split", "ensemble", "import"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


PartOf = TypeVar("PartOf", bound=_Part)


def _check_inside(path: str) -> str:
    """Accept only a path inside the version's folder, so that a foreign manifest cannot name other files."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError(f"{path!r} is not a path inside the version's folder")
    return path


InnerPath = Annotated[str, AfterValidator(_check_inside)]


class FileEntry(_Part):
    """One Parquet file of the version; `path` is relative to its folder."""

    path: InnerPath
    kind: FileKind
    rows: int
    bytes: int
    sha256: str


class ExtraEntry(_Part):
    """One file of the version without rows: the card or the recipe."""

    path: InnerPath
    bytes: int
    sha256: str


class Seal(_Part):
    """The seal of a manifest, see the module's docstring."""

    extras: tuple[ExtraEntry, ...]
    manifest_sha256: str  # of the file's bytes, with this value replaced by zeros


class Totals(_Part):
    """Tokens and cost of all rows together, rejected rows included."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None  # of the answers in the rows
    spent_usd: float | None = None  # on this dataset so far, including failed attempts and earlier versions


class Manifest(_Part):
    """The manifest of a dataset version; see the module's docstring."""

    format_version: int
    name: str
    version: int
    created_at: str  # ISO 8601, UTC
    stillhouse: str  # the release that wrote it
    made_by: MadeBy = "label"
    how: str = ""  # how a version was made other than by labelling: the filter's condition, the imported file
    licence: str | None = None  # an SPDX identifier, or another licence name that a hub card accepts
    teacher: TeacherIdentity
    more_teachers: tuple[TeacherIdentity, ...] = ()  # further teachers of a merged text dataset
    teacher_code: dict[str, str] | None = None  # identity of a plug-in teacher's code, see plugin_code.py
    mode: Literal["generate", "score"] | None  # None: unknown, or not the same for all rows
    sampling: SamplingSettings | None  # None: unknown, or not the same for all rows
    soft: SoftSettings | None
    plan_sha256: str  # hash of the requests, their order and splits, and the filters
    prompts_sha256: str  # hash of the prompts as they were read, references included
    prompts: int
    duplicate_prompts: int  # in the source; each prompt was sent once
    rows: dict[str, int]  # split -> rows
    rejected: dict[str, int]  # reason -> rows
    totals: Totals
    parents: tuple[str, ...]  # versions whose rows or answers were reused, as name/v001
    recipe: dict[str, Any]
    files: tuple[FileEntry, ...]

    @property
    def label(self) -> str:
        return f"{self.name}/{version_label(self.version)}"


def version_label(version: int) -> str:
    """Return a version's folder name: 1 -> v001."""
    return f"v{version:03d}"


def read_manifest(folder: Location) -> Manifest:
    """Read the manifest in a version's folder.

    Raises:
        DatasetMissing: the folder has no manifest.
        DatasetRefused: the manifest is damaged, or has a format version that this release cannot read.
    """
    return _parse(Manifest, folder / FILE_NAME, _read_checked(folder))


def read_seal(folder: Location) -> Seal:
    """Read the seal of the manifest in a version's folder.

    Raises:
        DatasetMissing: the folder has no manifest.
        DatasetRefused: the manifest is damaged, or has a format version that this release cannot read.
    """
    return _parse(Seal, folder / FILE_NAME, _read_checked(folder))


def parse_manifest(content: bytes, place: str) -> Manifest:
    """Parse a manifest that was read from elsewhere, such as the hub; messages name it as `place`.

    Raises:
        DatasetRefused: the manifest is damaged, or has a format version that this release cannot read.
    """
    _check_content(place, content)
    return _parse(Manifest, place, content)


def write_manifest(folder: Location, manifest: Manifest) -> None:
    """Write the manifest, which makes the version exist; the card and the recipe must be written before."""
    extras = tuple(
        ExtraEntry(path=name, bytes=file.stat().st_size, sha256=sha256_of_file(file))
        for name in EXTRA_FILES
        if (file := folder / name).is_file()
    )
    seal = Seal(extras=extras, manifest_sha256=_NO_DIGEST)
    fields = manifest.model_dump(mode="json") | seal.model_dump(mode="json")
    content = to_json(fields, indent=2).encode() + b"\n"
    write_atomically(folder / FILE_NAME, _with_digest(content, hashlib.sha256(content).hexdigest()))


# --------------------------------------------------------------------------------------------------------------- helpers


def _read_checked(folder: Location) -> bytes:
    """Return the manifest's bytes after checking that it is JSON, of a supported format, and matches its checksum."""
    file = folder / FILE_NAME
    if not file.is_file():
        raise DatasetMissing(
            f"{folder} has no finished dataset: {FILE_NAME} is missing", fix="run `stillhouse label` until it is done"
        )
    content = file.read_bytes()
    _check_content(file, content)
    return content


def _check_content(file: Location | str, content: bytes) -> None:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:  # including invalid UTF-8 and too deep nesting
        raise _damaged(file, f"it is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise _damaged(file, f"it contains a {type(fields).__name__} instead of an object")
    version = fields.get("format_version")
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise DatasetRefused(
            f"{file} has format version {version}, and this release reads version {FORMAT_VERSION}",
            fix="install the release of Stillhouse that wrote it, or label again",
        )
    _check_digest(file, content)


def _check_digest(file: Location | str, content: bytes) -> None:
    _, mark, tail = content.rpartition(_DIGEST.encode())
    if not mark:
        raise _damaged(file, "its checksum is missing")
    digest = hashlib.sha256(_with_digest(content, _NO_DIGEST)).hexdigest()
    recorded = tail[: len(_NO_DIGEST)].decode(errors="replace")
    if digest != recorded:
        raise _damaged(file, f"its sha256 is {digest[:12]}…, and it records {recorded[:12]}…")


def _with_digest(content: bytes, digest: str) -> bytes:
    head, mark, tail = content.rpartition(_DIGEST.encode())
    return head + mark + digest.encode() + tail[len(_NO_DIGEST) :]


def _parse(part: type[PartOf], file: Location | str, content: bytes) -> PartOf:
    try:
        return part.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "the file"
        raise _damaged(file, f"{place}: {first['msg']}") from None


def _damaged(file: Location | str, what: str) -> DatasetRefused:
    return DatasetRefused(f"{file} is damaged: {what}", fix="restore it from a copy, or label again")
