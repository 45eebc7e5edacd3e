"""manifest.json: what a dataset version is, where it came from, and the checksum of every file.

It is written last: a version without one does not exist. Its last entries are its seal: the checksums of the files that
hold no rows (card, recipe), and a checksum of the manifest itself. verify.py holds a folder against all of it.
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
from stillhouse.records import FORMAT_VERSION, TeacherIdentity
from stillhouse.storage.durable import sha256_of_file, write_atomically
from stillhouse.storage.location import Location

FILE_NAME = "manifest.json"
EXTRA_FILES = ("README.md", "recipe.yaml")  # what a version's folder may hold beside the manifest and its Parquet files

_DIGEST = '"manifest_sha256": "'  # stands before the manifest's own checksum, which is its last value
_NO_DIGEST = "0" * 64  # stands in its place while it is taken

FileKind = Literal["train", "validation", "rejected"]
MadeBy = Literal["label", "merge", "filter", "split", "import"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


PartOf = TypeVar("PartOf", bound=_Part)


def _inside(path: str) -> str:
    """Only a path below the version's folder: a manifest from elsewhere must not name other files."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError(f"{path!r} is no path inside the version's folder")
    return path


InnerPath = Annotated[str, AfterValidator(_inside)]


class FileEntry(_Part):
    """One Parquet file of the version; `path` is relative to its folder."""

    path: InnerPath
    kind: FileKind
    rows: int
    bytes: int
    sha256: str


class ExtraEntry(_Part):
    """One file of the version that holds no rows."""

    path: InnerPath
    bytes: int
    sha256: str


class Seal(_Part):
    """What closes a manifest, see the module's docstring. Manifests of earlier releases have none."""

    extras: tuple[ExtraEntry, ...] | None = None
    manifest_sha256: str | None = None  # of the file's bytes, with zeros in the place of this value


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
    teacher_code: dict[str, str] | None = (
        None  # of a teacher that does not come with Stillhouse, as plugins.py names it
    )
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


def read_manifest(folder: Location) -> Manifest:
    """The manifest of a dataset version's folder.

    Raises:
        DatasetMissing: there is none.
        DatasetRefused: it is damaged, or of a format that this release cannot read.
    """
    return _validated(Manifest, folder / FILE_NAME, _checked(folder))


def read_seal(folder: Location) -> Seal:
    """What the manifest of a version's folder says beside the manifest; it raises as `read_manifest` does."""
    return _validated(Seal, folder / FILE_NAME, _checked(folder))


def parse_manifest(content: bytes, place: str) -> Manifest:
    """The manifest of a version that does not lie in a folder here; `place` stands for its file in messages.

    Raises:
        DatasetRefused: it is damaged, or no manifest of this release's format.
    """
    _check_content(place, content)
    return _validated(Manifest, place, content)


def write_manifest(folder: Location, manifest: Manifest) -> None:
    """Make the version exist; the card and the recipe must be there already."""
    extras = tuple(
        ExtraEntry(path=name, bytes=file.stat().st_size, sha256=sha256_of_file(file))
        for name in EXTRA_FILES
        if (file := folder / name).is_file()
    )
    seal = Seal(extras=extras, manifest_sha256=_NO_DIGEST)
    said = manifest.model_dump(mode="json") | seal.model_dump(mode="json")
    content = to_json(said, indent=2).encode() + b"\n"
    write_atomically(folder / FILE_NAME, _with_digest(content, hashlib.sha256(content).hexdigest()))


# ---------------------------------------------------------------------------------------------------------------- pieces


def _checked(folder: Location) -> bytes:
    """The manifest's bytes: JSON of a format that this release reads, and as they were written."""
    file = folder / FILE_NAME
    if not file.is_file():
        raise DatasetMissing(
            f"{folder} holds no finished dataset: it has no {FILE_NAME}. Run `stillhouse label` to the end."
        )
    content = file.read_bytes()
    _check_content(file, content)
    return content


def _check_content(file: Location | str, content: bytes) -> None:
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:  # of the encoding too, and of what is nested too deeply
        raise _damaged(file, f"it is no JSON: {error}") from None
    if not isinstance(said, dict):
        raise _damaged(file, f"it holds a {type(said).__name__} where an object should be")
    version = said.get("format_version")
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise DatasetRefused(
            f"{file} has format version {version}; this release reads version {FORMAT_VERSION}. "
            "Install the release of Stillhouse that wrote it, or label again."
        )
    _check_digest(file, content, sealed="extras" in said)


def _check_digest(file: Location | str, content: bytes, *, sealed: bool) -> None:
    _, mark, tail = content.rpartition(_DIGEST.encode())
    if not mark:
        if sealed:
            raise _damaged(file, "it has lost its own checksum")
        return  # of a release that wrote none
    digest = hashlib.sha256(_with_digest(content, _NO_DIGEST)).hexdigest()
    said = tail[: len(_NO_DIGEST)].decode(errors="replace")
    if digest != said:
        raise _damaged(file, f"it has sha256 {digest[:12]}…, and says {said[:12]}… of itself")


def _with_digest(content: bytes, digest: str) -> bytes:
    head, mark, tail = content.rpartition(_DIGEST.encode())
    return head + mark + digest.encode() + tail[len(_NO_DIGEST) :]


def _validated(part: type[PartOf], file: Location | str, content: bytes) -> PartOf:
    try:
        return part.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "the file"
        raise _damaged(file, f"{place}: {first['msg']}") from None


def _damaged(file: Location | str, what: str) -> DatasetRefused:
    return DatasetRefused(f"{file} is damaged: {what}. Restore it from a copy, or label again.")
