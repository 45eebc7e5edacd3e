"""Anthropic's API, by its own package: messages online, and message batches at half the price.

    teacher: {kind: anthropic, model: claude-sonnet-4-5}
    teacher: {kind: anthropic, model: claude-sonnet-4-5, options: {thinking: {type: enabled, budget_tokens: 2000}}}

The key is read from the environment (`ANTHROPIC_API_KEY`, or the variable named by `options.api_key_env`). An answer's
thinking is stored as its reasoning. The API returns no log-probabilities, and therefore no soft labels.
Install the package with `pip install 'stillhouse[anthropic]'`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import Field, JsonValue, SecretStr

from stillhouse.errors import RecipeError, TeacherRefused
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import TeacherIdentity, content_hash, finish_reason_of
from stillhouse.settings import Settings, parse_options
from stillhouse.teachers.base import Answer, AttemptFailed, Outcome, Refusal, Request
from stillhouse.teachers.batches import BatchLimits, BatchResult, RemoteBatch
from stillhouse.teachers.prices import Price, SharedPrice, find_price, why_no_price
from stillhouse.teachers.serving.account import account_of, find_base_url, find_key
from stillhouse.teachers.serving.error_bodies import ErrorBody, read_error
from stillhouse.teachers.serving.error_classes import classify_error
from stillhouse.teachers.serving.json_bodies import json_lines
from stillhouse.teachers.serving.openai_api import NO_KEY, Timeouts
from stillhouse.teachers.serving.redaction import Redactor
from stillhouse.teachers.serving.retry_after import requested_pause, retry_after

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

_DEFAULT_URL = "https://api.anthropic.com"
_URL_VARIABLE = "ANTHROPIC_BASE_URL"
_OURS = {  # not allowed in extra_body; with the fix
    "model": "use teacher.model",
    "messages": "use prompts",
    "system": "use prompts.system",
    "max_tokens": "use label.sampling.max_tokens",
    "thinking": "use teacher.options.thinking",
    "output_config": "use label.response_format",
    "stream": "remove it: answers are not streamed",
}
_MAX_QUOTED = 300
_CLOCKS_SECONDS = 60.0  # by which the provider's clock may differ from this machine's
_RESULTS = "results.jsonl"


class AnthropicBatchOptions(Settings):
    """`teacher.options.batch`: what the provider allows, and what it charges."""

    requests: int = Field(default=100_000, ge=1, description="maximum requests of a job")
    megabytes: float = Field(default=256, gt=0, description="maximum size of its input, 10^6 bytes")
    price_share: float = Field(
        default=0.5, gt=0, le=1, description="price of an answer, as a share of the online price"
    )


class AnthropicOptions(Settings):
    """`teacher.options` of this kind."""

    base_url: str | None = Field(default=None, description="None: ANTHROPIC_BASE_URL, else Anthropic's URL")
    api_key_env: str = Field(default="ANTHROPIC_API_KEY", description="the environment variable that holds the key")
    thinking: dict[str, JsonValue] | None = Field(default=None, description="as in the API; None: no thinking")
    extra_body: dict[str, JsonValue] = Field(default_factory=dict, description="extra request fields; null removes one")
    timeouts: Timeouts = Field(default=Timeouts(), description="timeouts of a request")
    batch: AnthropicBatchOptions = Field(
        default=AnthropicBatchOptions(), description="batch jobs: the provider's limits and price"
    )


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> AnthropicTeacher:
    """Check the options and read the API key; nothing is sent yet."""
    options = parse_options("teacher.options", settings.options, AnthropicOptions)
    if not settings.model:
        raise RecipeError("the model has no name", setting="teacher.model", value="", fix="set it to the API's name")
    refused = {
        "label.soft": (label.soft, "the API returns no log-probabilities", "set it to null"),
        "label.top_logprobs": (label.top_logprobs, "the API returns no log-probabilities", "set it to null"),
        "label.mode": (label.mode == "score" or None, "the API can only generate", "set it to 'generate'"),
    }
    for setting, (given, why, fix) in refused.items():
        if given is not None:
            raise RecipeError(f"{why} (teacher.kind anthropic)", setting=setting, fix=fix)
    for name in options.extra_body.keys() & _OURS.keys():
        raise RecipeError("it cannot be set here", setting=f"teacher.options.extra_body.{name}", fix=_OURS[name])
    _check_response_format(label)
    if find_spec("anthropic") is None:
        raise RecipeError(
            "this kind needs the package `anthropic`, which is not installed",
            setting="teacher.kind",
            value="anthropic",
            fix="run `pip install 'stillhouse[anthropic]'`",
        )
    base_url = find_base_url(options.base_url, _URL_VARIABLE, _DEFAULT_URL)
    return AnthropicTeacher(settings, options, label, base_url, find_key(options.api_key_env, base_url))


class _Refused(Exception):
    """The API refuses one prompt."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


class AnthropicTeacher:
    """A teacher behind Anthropic's API; the protocols are `Teacher` in base.py and `Batches` in batches.py."""

    batch_size = 1
    parallel = None

    def __init__(
        self, settings: TeacherSettings, options: AnthropicOptions, label: LabelSettings, base_url: str, key: SecretStr
    ) -> None:
        self._settings = settings
        self._options = options
        self._label = label
        self._base_url = base_url
        self._key = key

    @property
    def identity(self) -> TeacherIdentity:
        shaping = {"thinking": self._options.thinking, "extra_body": self._options.extra_body}
        return TeacherIdentity(
            kind="anthropic",
            model=self._settings.model,
            revision=self._settings.revision,
            endpoint=self._base_url,
            options_sha256=content_hash(shaping),
            continuing="",  # an assistant turn at the end is continued
        )

    @cached_property
    def price(self) -> Price | None:
        return find_price(self._settings, self._base_url)

    @property
    def why_no_price(self) -> str:
        return why_no_price(self._settings, self._base_url)

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        return [await self._one(request) for request in requests]

    async def close(self) -> None:
        client = self.__dict__.pop("_client", None)
        if client is not None:
            await client.close()

    async def _one(self, request: Request) -> Outcome:
        try:
            with self._errors():
                body = self._body(request)  # the package's own arguments lack some fields that models take
                own = {name: body.pop(name) for name in ("model", "max_tokens", "messages")}
                raw = await self._client.messages.with_raw_response.create(**own, extra_body=body)
                response = raw.http_response
                return self._read(response.json(), self.price, requested_pause(response.headers))
        except _Refused as refused:
            return refused.refusal

    def _body(self, request: Request) -> dict[str, Any]:
        label, messages = self._label, request.prompt.messages
        body: dict[str, Any] = {
            "model": self._settings.model,
            "max_tokens": label.sampling.max_tokens,
            "messages": [message.as_dict() for message in messages if message.role != "system"],
        }
        if system := "\n\n".join(message.content for message in messages if message.role == "system"):
            body["system"] = system
        if self._options.thinking is None:  # thinking takes no temperature
            body["temperature"] = label.sampling.temperature
            if label.sampling.top_p < 1:
                body["top_p"] = label.sampling.top_p
        else:
            body["thinking"] = self._options.thinking
        if label.response_format is not None:
            schema = label.response_format["json_schema"]["schema"]
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        return {name: value for name, value in {**body, **self._options.extra_body}.items() if value is not None}

    def _read(self, data: Mapping[str, Any], price: Price | None, pause: float = 0.0) -> Outcome:
        """Turn a message into an outcome."""
        usage = data.get("usage") or {}
        cached, written = (int(usage.get(f"cache_{name}_input_tokens") or 0) for name in ("read", "creation"))
        prompt_tokens, completion_tokens = usage.get("input_tokens"), usage.get("output_tokens")
        cost = None
        if prompt_tokens is not None:
            prompt_tokens += cached + written
        if price is not None and prompt_tokens is not None and completion_tokens is not None:
            cost = price.cost(prompt_tokens, completion_tokens, cached, written)
        blocks = data.get("content")
        if not isinstance(blocks, list):
            raise AttemptFailed("malformed", "status 200 without content", cost_usd=cost)
        stop = str(data.get("stop_reason") or "other")
        answer = Answer(
            text="".join(str(one.get("text") or "") for one in blocks if one.get("type") == "text"),
            finish_reason="content_filter" if stop == "refusal" else finish_reason_of(stop),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost_usd=cost,
            reasoning="".join(str(one.get("thinking") or "") for one in blocks if one.get("type") == "thinking")
            or None,
            pause=pause,
        )
        if stop == "refusal":
            return Refusal("refused", "the model declined to answer (stop_reason refusal)", answer=answer)
        if not answer.text.strip():
            return Refusal("empty", f"the answer has no text (stop_reason {stop})", answer=answer)
        return answer

    # ------------------------------------------------------------------------------------------------------ batch jobs

    @property
    def batch_limits(self) -> BatchLimits:
        options = self._options.batch
        return BatchLimits(options.requests, int(options.megabytes * 1e6))

    @cached_property
    def batch_price(self) -> Price | None:
        return None if self.price is None else SharedPrice(self.price, self._options.batch.price_share)

    @property
    def account(self) -> str:
        return account_of(self._base_url, self._key)

    def batch_line(self, request: Request) -> bytes:
        return orjson.dumps({"custom_id": request.key, "params": self._body(request)})

    async def submit_batch(self, job: str, file: Path) -> str:
        """Create the job. The API has no metadata: the custom id of each request begins with our id of the job."""
        requests = [orjson.loads(line) for line in file.read_bytes().splitlines()]
        for request in requests:
            request["custom_id"] = f"{job}_{request['custom_id']}"
        with self._job_errors("a batch job was refused"):
            return str((await self._client.messages.batches.create(requests=requests)).id)

    async def find_batch(self, job: str, *, requests: int, since: datetime) -> str | None:
        """Return the provider's id of our job.

        A job that has ended is known by the custom ids of its results. Of the running jobs with as many requests, made
        since then, one alone is taken for ours: if it proves to be another's, ours does not exist.
        """
        running: list[str] = []
        with self._job_errors("the list of batch jobs"):
            async for batch in self._client.messages.batches.list(limit=100):
                made = batch.created_at if batch.created_at.tzinfo else batch.created_at.replace(tzinfo=UTC)
                if (since - made).total_seconds() > _CLOCKS_SECONDS:
                    break  # the newest are listed first
                if sum(batch.request_counts.model_dump().values()) != requests:
                    continue
                if batch.processing_status != "ended":
                    running.append(batch.id)
                elif batch.results_url and await self._has_results_of(batch.id, job):
                    return str(batch.id)
        if len(running) > 1:
            raise AttemptFailed(
                "unreachable",
                f"{len(running)} batch jobs of {requests:,} requests are running, and one may be job {job}, whose "
                "submission was interrupted: which one is known when they have ended",
                server_at_fault=True,
            )
        return running[0] if running else None

    async def _has_results_of(self, remote_id: str, job: str) -> bool:
        async for result in await self._client.messages.batches.results(remote_id):
            return result.custom_id.startswith(f"{job}_")
        return False

    async def read_batch(self, remote_id: str) -> RemoteBatch:
        with self._job_errors("a batch job"):
            batch = await self._client.messages.batches.retrieve(remote_id)
            counts = batch.request_counts
            return RemoteBatch(
                id=batch.id,
                state=batch.processing_status,
                has_ended=batch.processing_status == "ended",
                completed=counts.succeeded,
                failed=counts.errored + counts.canceled + counts.expired,
            )

    async def batch_results(self, remote_id: str, folder: Path) -> AsyncIterator[BatchResult]:
        file = folder / _RESULTS
        with self._job_errors("the results of a batch job"):
            async with self._client.messages.batches.with_streaming_response.results(remote_id) as response:
                with file.open("wb") as written:
                    async for chunk in response.iter_bytes():
                        written.write(chunk)
        for line in json_lines(file):
            yield self._batch_result(line)

    async def cancel_batch(self, remote_id: str) -> None:
        with self._job_errors("the cancellation of a batch job"):
            await self._client.messages.batches.cancel(remote_id)

    async def remove_batch_files(self, job: str, remote_id: str | None) -> None:
        """Do nothing: a job's input is no file, and the provider deletes its results after 29 days."""

    def _batch_result(self, line: Mapping[str, Any]) -> BatchResult:
        custom_id = str(line.get("custom_id") or "").rpartition("_")[2]
        result = line.get("result") or {}
        kind = result.get("type")
        try:
            if kind == "succeeded":
                return BatchResult(custom_id, self._read(result.get("message") or {}, self.batch_price))
            if kind == "errored":
                error = read_error(result) or ErrorBody("the line has an error without a message")
                return BatchResult(custom_id, self._classify(error.status_of(200), error))
        except AttemptFailed as failure:
            return BatchResult(custom_id, None, failure.detail)
        except TeacherRefused as refused:
            return BatchResult(custom_id, None, str(refused), refuses_all=True)
        return BatchResult(custom_id, None, f"the request was {kind or 'not answered'}")

    # -------------------------------------------------------------------------------------------------------- internals

    @cached_property
    def _client(self) -> AsyncAnthropic:
        import anthropic
        import httpx2

        timeouts = self._options.timeouts
        return anthropic.AsyncAnthropic(
            api_key=self._key.get_secret_value(),
            base_url=self._base_url,
            max_retries=0,
            timeout=httpx2.Timeout(timeouts.read, connect=timeouts.connect),
        )

    @contextmanager
    def _job_errors(self, what: str) -> Iterator[None]:
        """Raise the package's errors as ours, of a request that has no single prompt."""
        try:
            with self._errors():
                yield
        except _Refused as refused:
            raise TeacherRefused(
                f"{what}: {refused.refusal.detail}", fix="check teacher.model, teacher.options, label and the API key"
            ) from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise the package's errors as ours; of one prompt as `_Refused`."""
        import anthropic
        import httpx2

        try:
            yield
        except anthropic.APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            found = read_error(body) or ErrorBody(str(error.message))
            wait = retry_after(error.response.headers)
            raise _Refused(self._classify(error.status_code, found, wait=wait)) from None
        except anthropic.APITimeoutError:
            raise AttemptFailed(
                "timeout", f"no answer of {self._base_url} in time", overloaded=True, cost_usd=None
            ) from None
        except (anthropic.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            text = self._sanitize(str(cause)) or type(cause).__name__
            unsent = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
            raise AttemptFailed(
                "unreachable" if unsent else "cut-off",
                f"{self._base_url}: {text}",
                server_at_fault=unsent,
                overloaded=unsent,
                cost_usd=0.0 if unsent else None,
            ) from None
        except ValueError as error:  # a body that is not JSON
            raise AttemptFailed("malformed", f"status 200: {self._sanitize(str(error))}", cost_usd=None) from None

    def _classify(self, status: int, error: ErrorBody, *, wait: float = 0.0) -> Refusal:
        detail = f"{self._base_url} returned {status}: {self._sanitize(error.text)}"
        return classify_error(error.status_of(status), error, detail, wait=wait, cost_usd=0.0)

    def _sanitize(self, text: str) -> str:
        return " ".join(self._redact(text).split())[:_MAX_QUOTED]

    @cached_property
    def _redact(self) -> Redactor:
        key = self._key.get_secret_value()
        return Redactor("" if key == NO_KEY else key)


def _check_response_format(label: LabelSettings) -> None:
    """Refuse a response format that the API does not have."""
    wanted = label.response_format
    if wanted is None:
        return
    schema = wanted.get("json_schema")
    if (
        wanted.get("type") != "json_schema"
        or not isinstance(schema, dict)
        or not isinstance(schema.get("schema"), dict)
    ):
        raise RecipeError(
            "the API answers in the form of a JSON schema alone",
            setting="label.response_format",
            fix="write it as {type: json_schema, json_schema: {name: ..., schema: {...}}}",
        )
