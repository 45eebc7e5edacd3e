"""The interface of exchange formats: how a dataset is exported to another project's format and imported from it.

    find_format("--to", "sharegpt").plan_export(dataset, options)   # ExportPlan: a schema, and the conversion of rows
    find_format("FORMAT", "sharegpt").read_rows(source)             # yields ImportedAnswer and SkippedRow

A format is a module in formats/ with an object `FORMAT` (or an entry point `stillhouse.formats` of another package); no
other code needs a change. export.py and imports.py handle files, splits, durability and versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError
from stillhouse.recipe.label import SamplingSettings, SoftSettings
from stillhouse.records import FinishReason, Prompt, TeacherIdentity, TokenLogprob, TokenTrace

FileType = Literal["jsonl", "parquet"]
Json = Mapping[str, Any]

# ---------------------------------------------------------------------------------------------------------------- export


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export."""

    file_type: FileType | None = None  # None: the format's default
    length: int | None = None  # tokens per row, for a format with rows of equal length; None: those of the longest row


@dataclass(frozen=True)
class ExportPlan:
    """How a dataset is exported to a format."""

    schema: pa.Schema
    columns: tuple[str, ...]  # the dataset's columns that `convert` reads
    convert: Callable[[pa.RecordBatch], pa.RecordBatch]  # `columns` to `schema`; drops rows that do not fit
    file_type: FileType = "jsonl"  # the default
    only: FileType | None = None  # the only file type that the other project can read
    extra_files: Mapping[str, bytes] = field(default_factory=dict)  # additional files, name -> content
    notes: tuple[str, ...] = ()  # remarks for the user
    why_skipped: str = ""  # why rows are left out


# ---------------------------------------------------------------------------------------------------------------- import


@dataclass(frozen=True)
class SourceLine:
    """A position in an input file."""

    file: Path
    number: int
    unit: str = "line"  # or "row" (Parquet), or "item" (JSON array)

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.number}"


@dataclass(frozen=True)
class RequestKey:
    """The key that labelling would give to the logged request; see `AnswerSettings.key` in teachers/base.py."""

    terms: str  # hash of everything that shapes an answer except prompt and sample number
    compute: Callable[[str, int], str]  # (prompt id, sample number) -> key


@dataclass(frozen=True)
class ImportedAnswer:
    """An answer to import. None means unknown."""

    prompt: Prompt
    text: str
    place: SourceLine
    finish_reason: FinishReason = "stop"  # most formats do not store it, and their answers are complete
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    reasoning: str | None = None
    token_logprobs: tuple[TokenLogprob, ...] | None = None
    trace: TokenTrace | None = None
    created_at: str | None = None
    teacher: TeacherIdentity | None = None
    sampling: SamplingSettings | None = None
    request: RequestKey | str = ""  # the request's key, or why it is unknown
    answer_id: str | None = None  # the server's id of the answer, to drop repeated ones


@dataclass(frozen=True)
class SkippedRow:
    """An answer or a failure that cannot become a row of a dataset."""

    reason: str  # a word or two, under which it is counted
    detail: str
    place: SourceLine


Read = ImportedAnswer | SkippedRow
Interpret = Callable[
    [Json, Json, SourceLine, bool], Iterator[Read]
]  # request, response, source line, whether from the Batch API


@dataclass(frozen=True)
class ImportSource:
    """The files to import, with the options of the command."""

    files: Sequence[Path]
    tokenizer: Path | None = None  # a folder; None if the user gave none
    soft: SoftSettings | None = None  # of the exported dataset, if its export note is next to the files
    interpret: Interpret | None = None  # turns an OpenAI request and its response into rows


class Format(Protocol):
    """An exchange format; see the module's docstring."""

    @property
    def soft(self) -> bool:
        """Whether its rows carry soft labels."""

    def plan_export(self, dataset: Dataset, options: ExportOptions) -> ExportPlan:
        """Prepare the export of a dataset; nothing is written yet.

        Raises:
            UsageError: the dataset cannot be exported to this format; the message says why, and what to use instead.
        """

    def read_rows(self, source: ImportSource) -> Iterator[Read]:
        """Yield the answers in the files, in one pass.

        Raises:
            UsageError: a file is not in this format; the message has the file, the line and the fix.
        """


def import_only_error(name: str) -> UsageError:
    """Return the error for an export to a format that can only be imported."""
    return UsageError(
        "this format can only be imported", setting="--to", value=name, fix="use openai to export conversations"
    )
