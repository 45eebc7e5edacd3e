"""The batch jobs of a dataset on disk, each in a folder of the journal's: batches/<id>/.

    job.json          the job: its state, account, provider's id, money and counts
    requests.arrow    key, prompt and sample of each request, so that an answer is kept even if the prompts change meanwhile
    input.jsonl       what is uploaded; deleted, like requests.arrow, once the job is settled

A job goes through these states, and each is durable before what follows it begins:

    intended     its requests are on disk and its money is lent; it may or may not have been submitted
    submitted    the provider's id is known
    settled      every answer is in the journal, and its money is spent or repaid
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from stillhouse.dataset.columns import MESSAGES
from stillhouse.errors import StorageFailed
from stillhouse.records import Message, Prompt, utc_now
from stillhouse.storage.durable import fsync_files, fsync_folder, make_folder, write_atomically
from stillhouse.teachers.base import Request

FOLDER = "batches"
INPUT = "input.jsonl"
_CARD, _REQUESTS = "job.json", "requests.arrow"
_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("sample", pa.int32()),
        pa.field("prompt", MESSAGES),
        pa.field("reference", pa.string()),
    ]
)
_ROWS = 1000  # of a record batch

JobState = Literal["intended", "submitted", "settled"]


class JobCard(BaseModel):
    """job.json."""

    model_config = ConfigDict(frozen=True)

    id: str  # ours
    state: JobState
    created_at: str  # ISO 8601, UTC
    account: str  # Batches.account
    model: str
    requests: int
    worst_usd: float
    submitted_at: str | None = None
    remote_id: str | None = None
    remote_state: str = ""  # the provider's word when it was last asked
    settled_at: str | None = None
    is_removed: bool = False  # whether its files at the provider are removed
    answered: int = 0
    rejected: int = 0
    unanswered: int = 0  # asked again
    spent_usd: float = 0.0
    detail: str = ""  # why the provider refused it, or what went wrong

    @property
    def is_open(self) -> bool:
        return self.state != "settled"


@dataclass(frozen=True)
class StoredRequest:
    """A request as its job keeps it."""

    key: str
    prompt: Prompt
    sample: int


@dataclass(frozen=True)
class BatchJob:
    """A job's folder, and its card as last read or written."""

    folder: Path
    card: JobCard

    @property
    def lease(self) -> str:
        """The name of its lease in the journal."""
        return f"{FOLDER}/{self.card.id}"

    @property
    def input(self) -> Path:
        return self.folder / INPUT

    def updated(self, **changes: object) -> BatchJob:
        """Write changes of the card, durably; return the job with them."""
        card = self.card.model_copy(update=changes)
        write_atomically(self.folder / _CARD, card.model_dump_json(indent=2).encode() + b"\n")
        return BatchJob(self.folder, card)

    def settled(self, **changes: object) -> BatchJob:
        """Write that the job is settled, and delete its large files."""
        job = self.updated(state="settled", settled_at=utc_now(), **changes)
        for file in self.folder.iterdir():
            if file.name != _CARD:
                file.unlink(missing_ok=True)
        return job

    def keys(self) -> list[str]:
        """Return the keys of its requests, in the order of its lines; none of a settled job."""
        with self._reader() as reader:
            return [key for batch in _batches(reader) for key in batch.column("key").to_pylist()]

    def requests(self) -> Requests:
        """Open its requests for looking them up by key."""
        return Requests(self.folder / _REQUESTS)

    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(str(self.folder / _REQUESTS)))


class Requests:
    """The requests of a job by key; their prompts stay on disk until they are asked for."""

    def __init__(self, file: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self._places: dict[str, tuple[int, int]] = {}
        for number in range(self._reader.num_record_batches):
            for row, key in enumerate(self._reader.get_batch(number).column("key").to_pylist()):
                self._places[key] = (number, row)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def find(self, key: str) -> StoredRequest | None:
        """Return a request; None if the job does not have it."""
        if key not in self._places:
            return None
        number, row = self._places[key]
        batch = self._reader.get_batch(number).slice(row, 1).to_pylist()[0]
        messages = tuple(Message(turn["role"], turn["content"]) for turn in batch["prompt"])
        return StoredRequest(key, Prompt(messages, batch["reference"]), batch["sample"])


def write_job(
    root: Path, requests: Sequence[Request], lines: Iterable[bytes], *, account: str, model: str, worst_usd: float
) -> BatchJob:
    """Write a job whose requests are durable, without its card: it does not exist until `updated` writes that.

    Args:
        root: the folder of the journal.
        requests: what is asked.
        lines: the line of each request.
        account: `Batches.account`.
        model: the teacher's model.
        worst_usd: the highest cost of all requests.

    Raises:
        StorageFailed: the disk is full or cannot be written.
    """
    card = JobCard(
        id=secrets.token_hex(8),
        state="intended",
        created_at=datetime.now(UTC).isoformat(),  # to the microsecond: the order of jobs
        account=account,
        model=model,
        requests=len(requests),
        worst_usd=worst_usd,
    )
    folder = root / FOLDER / card.id
    make_folder(folder)
    try:
        with (folder / INPUT).open("wb") as file:
            for line in lines:
                file.write(line + b"\n")
        with pa.OSFile(str(folder / _REQUESTS), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for start in range(0, len(requests), _ROWS):
                rows = [_row(request) for request in requests[start : start + _ROWS]]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StorageFailed(
            f"{folder} cannot be written: {error.strerror}; nothing was submitted",
            fix="free disk space or give write permission, and run again",
        ) from None
    fsync_files(folder)
    fsync_folder(folder.parent)
    return BatchJob(folder, card)


def jobs_in(root: Path) -> list[BatchJob]:
    """Return the jobs of a journal's folder, the oldest first; folders of jobs that were never intended are deleted.

    Call it with the dataset's lock held, or only to look: see `read_jobs`.
    """
    jobs = read_jobs(root)
    known = {job.folder for job in jobs}
    for folder in (root / FOLDER).glob("*"):
        if folder not in known and not (folder / _CARD).exists():
            shutil.rmtree(folder, ignore_errors=True)
    return jobs


def read_jobs(root: Path) -> list[BatchJob]:
    """Return the jobs of a journal's folder, the oldest first; nothing is changed."""
    found = []
    for file in (root / FOLDER).glob(f"*/{_CARD}"):
        try:
            found.append(BatchJob(file.parent, JobCard.model_validate_json(file.read_bytes())))
        except (OSError, ValidationError) as error:
            raise StorageFailed(
                f"{file} cannot be read: {error}",
                fix="restore it from a copy; if the job does not matter any more, delete its folder",
            ) from None
    return sorted(found, key=lambda job: (job.card.created_at, job.card.id))


def has_open_jobs(root: Path) -> bool:
    """Whether a journal's folder has a job that is not settled."""
    return any(job.card.is_open for job in read_jobs(root))


def _batches(reader: pa.ipc.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


def _row(request: Request) -> dict[str, object]:
    prompt = request.prompt
    return {
        "key": request.key,
        "sample": request.sample,
        "prompt": [message.as_dict() for message in prompt.messages],
        "reference": prompt.reference,
    }
