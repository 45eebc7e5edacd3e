"""The interface between the labelling engine and a provider's batch jobs: files of requests, answered within a day.

A teacher with this protocol takes `label.delivery: batch`. It knows how a provider's jobs are made, found, read and
removed; what is sent in which job, what is paid and what is asked again is the engine's business (labelling/batches/).

Each job carries an id of ours, which is durable before the job is submitted. A process that was killed in between finds the
job by this id (`find_batch`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from stillhouse.teachers.base import Outcome, Request
from stillhouse.teachers.prices import Price


@dataclass(frozen=True)
class BatchLimits:
    """The most that one job of a provider may have."""

    requests: int
    bytes: int  # of its input file


@dataclass(frozen=True)
class LineFault:
    """A line of the input for which the provider refused the whole job."""

    number: int  # from 1
    detail: str


@dataclass(frozen=True)
class RemoteBatch:
    """What a provider says of a job."""

    id: str
    state: str  # the provider's word
    has_ended: bool = False
    completed: int = 0  # requests answered
    failed: int = 0  # requests with an error
    refusal: str = ""  # why the provider refused the whole job; "" if it did not
    faulty_lines: tuple[LineFault, ...] = ()  # the lines that the refusal names
    over_queue_limit: bool = False  # refused because too many tokens are waiting: it may be submitted again later


@dataclass(frozen=True)
class BatchResult:
    """What came of one request of a job."""

    custom_id: str
    outcome: (
        Outcome | None
    )  # None: neither answered nor refused (expired, cancelled, a server's error); it is asked again
    detail: str = ""  # why there is no outcome
    refuses_all: bool = False  # whether every request of this account, model and settings would get it (no credit)


@runtime_checkable
class Batches(Protocol):
    """A teacher that answers by batch jobs; each method makes one attempt.

    All may raise `AttemptFailed` (another attempt may succeed) and `TeacherUnavailable` (none will).
    """

    @property
    def batch_limits(self) -> BatchLimits: ...

    @property
    def batch_price(self) -> Price | None:
        """The price of an answer in a batch; None if it is not known."""

    @property
    def account(self) -> str:
        """What identifies the account: jobs of another one cannot be seen. It holds no secret."""

    def batch_line(self, request: Request) -> bytes:
        """Return a request's line of the input file, without the line break; its `custom_id` is the request's key."""

    async def submit_batch(self, job: str, file: Path) -> str:
        """Upload the input file, create the job with our id `job`, and return the provider's id."""

    async def find_batch(self, job: str, *, requests: int, since: datetime) -> str | None:
        """Return the provider's id of our job, not older than `since`; None if it lists none of this number of requests."""

    async def read_batch(self, remote_id: str) -> RemoteBatch:
        """Return the state of a job."""

    def batch_results(self, remote_id: str, folder: Path) -> AsyncIterator[BatchResult]:
        """Download the results of a job that has ended into `folder`, and yield them in any order."""

    async def cancel_batch(self, remote_id: str) -> None:
        """Request the end of a job; what is answered already can still be read."""

    async def remove_batch_files(self, job: str, remote_id: str | None) -> None:
        """Remove the input that was uploaded for a job, and its results; no error if there are none."""
