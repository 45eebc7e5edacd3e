"""Batch jobs of an OpenAI-compatible API (/v1/files, /v1/batches), by the `openai` package.

    batches = OpenAiBatches(endpoint, api)
    remote_id = await batches.submit(job, file, "/v1/chat/completions")

Our id of a job is in the batch's metadata, and in the name of the uploaded file. A job is looked for by its metadata; on a
server without metadata, by the file of that name and the batch that reads it. Every failure is raised as `AttemptFailed`
or `TeacherRefused`, as for single requests (openai_api.py).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stillhouse.errors import TeacherRefused
from stillhouse.settings import Settings
from stillhouse.teachers.base import AttemptFailed
from stillhouse.teachers.batches import LineFault, RemoteBatch
from stillhouse.teachers.serving.account import account_of
from stillhouse.teachers.serving.error_bodies import ErrorBody, read_error
from stillhouse.teachers.serving.json_bodies import json_lines
from stillhouse.teachers.serving.openai_api import Endpoint, OpenAiApi

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import Batch

log = logging.getLogger(__name__)

_METADATA = "stillhouse_job"
_ENDED = {"failed", "completed", "expired", "cancelled"}
_FILES = {"output": "output_file_id", "errors": "error_file_id"}
_QUEUE_FULL = {"token_limit_exceeded", "enqueued_token_limit_exceeded"}


class BatchOptions(Settings):
    """`teacher.options.batch`: what the provider allows, and what it charges."""

    requests: int = Field(default=50_000, ge=1, description="maximum requests of a job")
    megabytes: float = Field(default=200, gt=0, description="maximum size of its input, 10^6 bytes")
    price_share: float = Field(
        default=0.5, gt=0, le=1, description="price of an answer, as a share of the online price"
    )
    window: str = Field(default="24h", description="the provider's name of the time within which a job ends")


class OpenAiBatches:
    """The batch jobs of one account; use it from one event loop."""

    def __init__(self, endpoint: Endpoint, api: OpenAiApi) -> None:
        self._endpoint = endpoint
        self._api = api

    @property
    def account(self) -> str:
        return account_of(self._endpoint.base_url, self._endpoint.key)

    async def submit(self, job: str, file: Path, url: str, window: str) -> str:
        """Upload the input, create the job, and return its id."""
        with self._errors("the upload of a batch job", may_be_absent=True):
            with file.open("rb") as source:
                uploaded = await self._client.files.create(file=(_file_name(job), source), purpose="batch")
            made = await self._client.batches.create(
                input_file_id=uploaded.id,
                endpoint=url,  # type: ignore[arg-type]  # the package lists OpenAI's own
                completion_window=window,  # type: ignore[arg-type]
                metadata={_METADATA: job},
            )
        return str(made.id)

    async def find(self, job: str) -> str | None:
        """Return the id of our job; None if the server lists none."""
        with self._errors("the list of batch jobs"):
            files = {one.id async for one in self._files_of(job)}
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(_METADATA) == job or batch.input_file_id in files:
                    return str(batch.id)
        return None

    async def read(self, remote_id: str) -> RemoteBatch:
        """Return the state of a job."""
        with self._errors("a batch job"):
            batch = await self._client.batches.retrieve(remote_id)
        return _remote(batch, self._api)

    async def lines(self, remote_id: str, folder: Path) -> AsyncIterator[Mapping[str, Any]]:
        """Download the outputs and the errors of a job into `folder`, and yield their lines."""
        with self._errors("a batch job"):
            batch = await self._client.batches.retrieve(remote_id)
        for name, attribute in _FILES.items():
            file_id = getattr(batch, attribute)
            if file_id is None:
                continue
            file = folder / f"{name}.jsonl"
            if await self._download(file_id, file):
                for line in json_lines(file):
                    yield line

    async def cancel(self, remote_id: str) -> None:
        """Request the end of a job."""
        with self._errors("the cancellation of a batch job"):
            await self._client.batches.cancel(remote_id)

    async def remove_files(self, job: str, remote_id: str | None) -> None:
        """Remove the input of a job and its results."""
        import openai

        with self._errors("the files of a batch job"):
            ids = [one.id async for one in self._files_of(job)]
            if remote_id is not None:
                batch = await self._client.batches.retrieve(remote_id)
                ids += [one for name in _FILES.values() if (one := getattr(batch, name))]
            for file_id in ids:
                with suppress(openai.NotFoundError):
                    await self._client.files.delete(file_id)

    async def close(self) -> None:
        client = self.__dict__.pop("_client", None)
        if client is not None:
            await client.close()

    # -------------------------------------------------------------------------------------------------------- internals

    @cached_property
    def _client(self) -> AsyncOpenAI:
        return self._api.open_client()

    async def _files_of(self, job: str) -> AsyncIterator[Any]:
        async for file in self._client.files.list(purpose="batch", limit=10_000):
            if file.filename == _file_name(job):
                yield file

    async def _download(self, file_id: str, file: Path) -> bool:
        """Download a file; return False if the server does not have it any more."""
        import openai

        with self._errors("the results of a batch job"):
            try:
                async with self._client.files.with_streaming_response.content(file_id) as response:
                    expected = response.headers.get("content-length")
                    await response.stream_to_file(file)
            except openai.NotFoundError as error:
                log.warning("the results of a batch job are gone: %s", self._api.sanitize(str(error)))
                return False
        size = file.stat().st_size
        if expected is not None and response.headers.get("content-encoding") is None and size != int(expected):
            raise AttemptFailed("cut-off", f"{size:,} of {int(expected):,} bytes of a batch job's results arrived")
        return True

    @contextmanager
    def _errors(self, what: str, *, may_be_absent: bool = False) -> Iterator[None]:
        """Raise the package's errors as ours; `may_be_absent`: 404 means that the server has no batch jobs."""
        import aiohttp
        import httpx2
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            if may_be_absent and error.status_code in (404, 405, 501):
                raise TeacherRefused(
                    f"{self._endpoint.base_url} has no batch jobs: {what} returned {error.status_code} "
                    f"({self._api.sanitize(str(error.message))})",
                    setting="label.delivery",
                    fix="set it to online, or use a provider with /v1/files and /v1/batches",
                ) from None
            body = error.body if isinstance(error.body, dict) else {}
            found = read_error({"error": body} if body and "error" not in body else body) or ErrorBody(
                str(error.message)
            )
            refusal = self._api.classify(error.status_code, found)
            raise TeacherRefused(
                f"{what}: {refusal.detail}", fix="check teacher.options.batch, the model and the base URL"
            ) from None
        except (openai.APIConnectionError, httpx2.HTTPError, aiohttp.ClientError, TimeoutError) as error:
            cause = error.__cause__ or error
            raise AttemptFailed(
                "unreachable", f"{what}: {self._api.sanitize(str(cause) or type(cause).__name__)}", server_at_fault=True
            ) from None
        except ValueError as error:  # what came is not JSON
            raise AttemptFailed("malformed", f"{what}: {self._api.sanitize(str(error))}") from None


def _file_name(job: str) -> str:
    return f"stillhouse-{job}.jsonl"


def _remote(batch: Batch, api: OpenAiApi) -> RemoteBatch:
    counts, errors = batch.request_counts, (batch.errors.data if batch.errors else None) or []
    refusal, faults, full = "", list[LineFault](), False
    if batch.status == "failed":
        texts = [api.sanitize(" ".join(filter(None, (one.message, one.code)))) for one in errors]
        refusal = "; ".join(texts[:3]) or "it failed without a reason"
        faults = [LineFault(one.line, text) for one, text in zip(errors, texts, strict=True) if one.line is not None]
        full = any(one.code in _QUEUE_FULL for one in errors)
    return RemoteBatch(
        id=batch.id,
        state=batch.status,
        has_ended=batch.status in _ENDED,
        completed=counts.completed if counts else 0,
        failed=counts.failed if counts else 0,
        refusal=refusal,
        faulty_lines=tuple(faults),
        over_queue_limit=full,
    )
