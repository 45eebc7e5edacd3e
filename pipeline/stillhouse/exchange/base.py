"""What a format of other projects is: a pair of ways, out of a dataset and into one.

    find_format("--to", "sharegpt").exports(dataset, options)       # Outgoing: columns, and how rows become them
    find_format("FORMAT", "sharegpt").reads(source)                 # Answered or LeftOut, one by one

A format is a module in formats/ with an object `FORMAT` (or an entry point `stillhouse.formats` of another package);
nothing else needs an edit. Files, splits, durability and versions are export.py's and imports.py's.
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

_TURN = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
MESSAGES = pa.list_(_TURN)

# ------------------------------------------------------------------------------------------------------------------- out


@dataclass(frozen=True)
class ExportOptions:
    """What a person may choose of an export."""

    file_type: FileType | None = None  # None: the format's own
    length: int | None = None  # tokens a row, of a format whose rows all have one length; None: the longest row's


@dataclass(frozen=True)
class Outgoing:
    """A dataset on its way out."""

    schema: pa.Schema
    columns: tuple[str, ...]  # of the dataset, all that `convert` reads
    convert: Callable[[pa.RecordBatch], pa.RecordBatch]  # of `columns`, to `schema`; a row that cannot go is left out
    file_type: FileType = "jsonl"  # where nobody chose
    only: FileType | None = None  # where the other project reads no other
    beside: Mapping[str, bytes] = field(default_factory=dict)  # further files, by name
    notes: tuple[str, ...] = ()  # what a person should know of it
    why_left_out: str = ""  # of the rows that cannot go


# -------------------------------------------------------------------------------------------------------------------- in


@dataclass(frozen=True)
class Place:
    """Where something was read."""

    file: Path
    line: int
    what: str = "line"  # "row", of a file without lines

    def __str__(self) -> str:
        return f"{self.file} {self.what} {self.line}"


@dataclass(frozen=True)
class RequestKey:
    """The key that labelling would give the request that was answered; see `Terms.key` in teachers/base.py."""

    terms: str  # names all that shapes an answer but prompt and sample number
    of: Callable[[str, int], str]  # (prompt id, sample number) -> key


@dataclass(frozen=True)
class Answered:
    """An answer from elsewhere. What is None nobody told."""

    prompt: Prompt
    text: str
    place: Place
    finish_reason: FinishReason = "stop"  # most formats hold answers that were written to their end, and do not say so
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    reasoning: str | None = None
    token_logprobs: tuple[TokenLogprob, ...] | None = None
    trace: TokenTrace | None = None
    created_at: str | None = None
    teacher: TeacherIdentity | None = None
    sampling: SamplingSettings | None = None
    request: RequestKey | str = ""  # or why its key cannot be known
    answer_id: str | None = None  # the server's own name of the answer: a second one with it is the same


@dataclass(frozen=True)
class LeftOut:
    """An answer, or a failure, that is no row of a dataset."""

    reason: str  # one word or two, to be counted by
    detail: str
    place: Place


Read = Answered | LeftOut
Interpret = Callable[[Json, Json, Place, bool], Iterator[Read]]  # request, response, where, whether it was in a batch


@dataclass(frozen=True)
class Source:
    """What is read, and what the command says of it."""

    files: Sequence[Path]
    tokenizer: Path | None = None  # a folder; None where none was named
    soft: SoftSettings | None = None  # of the exported dataset, where its own note lies beside the files
    interpret: Interpret | None = None  # makes an OpenAI request and its answer a row


class Format(Protocol):
    """One format; see the module's docstring."""

    @property
    def soft(self) -> bool:
        """Whether its rows carry soft labels."""

    def exports(self, dataset: Dataset, options: ExportOptions) -> Outgoing:
        """How this dataset's rows become rows of the format; nothing is written yet.

        Raises:
            UsageError: they cannot; the message says why, and what can.
        """

    def reads(self, source: Source) -> Iterator[Read]:
        """What the files hold, in one pass.

        Raises:
            UsageError: a file is not of this format; the message names file, line and mend.
        """


def only_imported(name: str) -> UsageError:
    """The error of a format that has no way out."""
    return UsageError(f"--to is {name!r}, a format that can only be imported: choose openai to write conversations")
