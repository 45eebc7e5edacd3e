"""An OpenAI-compatible API: text, its cost, and token log-probabilities if the API returns them.

    teacher: {kind: openai, model: gpt-4o-mini}
    teacher: {kind: openai, model: my-model, options: {base_url: "http://127.0.0.1:8000/v1"}}

The key is read from the environment (`OPENAI_API_KEY`, or the variable named by `options.api_key_env`), never from the
recipe. A server on this machine needs no key. The API returns no token ids, and therefore no soft labels: use the `vllm`
or `transformers` kinds for these.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field, JsonValue

from stillhouse.errors import RecipeError, TeacherRefused
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import TeacherIdentity, TokenLogprob, content_hash, finish_reason_of
from stillhouse.settings import Settings, parse_options
from stillhouse.teachers.base import Answer, AttemptFailed, Outcome, Refusal, Request
from stillhouse.teachers.batches import BatchLimits, BatchResult, RemoteBatch
from stillhouse.teachers.prices import Price, SharedPrice, find_price, why_no_price
from stillhouse.teachers.serving.account import find_base_url, find_key
from stillhouse.teachers.serving.environment import HEADER_VARIABLES, read_header
from stillhouse.teachers.serving.error_bodies import ErrorBody, read_error
from stillhouse.teachers.serving.openai_api import Endpoint, OpenAiApi, Reply, Timeouts
from stillhouse.teachers.serving.openai_batches import BatchOptions, OpenAiBatches

_DEFAULT_URL = "https://api.openai.com/v1"
_URL_VARIABLE = "OPENAI_BASE_URL"
_FORBIDDEN_FIELDS = {  # not allowed in extra_body, since prices, budgets or answers would be wrong; with the fix
    "model": "use teacher.model",
    "messages": "use prompts",
    "prompt": "use prompts",
    "max_tokens": "use label.sampling.max_tokens and options.max_tokens_field",
    "max_completion_tokens": "use label.sampling.max_tokens and options.max_tokens_field",
    "n": "use label.samples",
    "best_of": "use label.samples",
    "stream": "remove it: answers are not streamed",
}
_UNPRICED_FIELDS = {"service_tier", "tools", "functions", "web_search_options"}  # cost more than a price includes
_MAX_TOKENS = 2**31 - 1  # the largest token count that a row can store


class OpenAiOptions(Settings):
    """`teacher.options` of this kind."""

    base_url: str | None = Field(default=None, description="None: OPENAI_BASE_URL, else OpenAI's URL")
    api_key_env: str = Field(default="OPENAI_API_KEY", description="the environment variable that holds the key")
    api: Literal["chat", "completions"] = Field(
        default="chat", description="chat: chat completions; completions: text completions"
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="reasoning models need the second"
    )
    extra_body: dict[str, JsonValue] = Field(default_factory=dict, description="extra request fields; null removes one")
    continue_body: dict[str, JsonValue] | None = Field(
        default=None, description="fields that make the server continue the last assistant turn"
    )
    timeouts: Timeouts = Field(default=Timeouts(), description="timeouts of a request")
    batch: BatchOptions = Field(default=BatchOptions(), description="batch jobs: the provider's limits and price")


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> OpenAiTeacher:
    """Check the options and read the API key; nothing is sent yet."""
    options = parse_options("teacher.options", settings.options, OpenAiOptions)
    if not settings.model:
        raise RecipeError(
            "the model has no name",
            setting="teacher.model",
            value="",
            fix="set it to the API's name, such as gpt-4o-mini",
        )
    if label.soft is not None and label.soft.encoding == "sampled":
        raise RecipeError(
            "no API returns the full distribution to sample from",
            setting="label.soft.encoding",
            value="sampled",
            fix="use teacher.kind 'transformers', or set label.soft to null and student.mode to 'black-box'",
        )
    if label.soft is not None:
        raise RecipeError(
            "soft labels need token ids, which teacher.kind 'openai' does not return",
            setting="label.soft",
            fix="set it to null and student.mode to 'black-box', or use teacher.kind 'vllm' or 'transformers'",
        )
    if label.mode == "score":
        raise RecipeError(
            "teacher.kind 'openai' can only generate",
            setting="label.mode",
            value="score",
            fix="set it to 'generate', or use teacher.kind 'transformers' or 'vllm'",
        )
    for option, fields in (("extra_body", options.extra_body), ("continue_body", options.continue_body or {})):
        _check_fields(f"teacher.options.{option}", fields, label)
    _check_encodable(settings, options, label)
    for name in HEADER_VARIABLES:
        read_header(name)
    base_url = find_base_url(options.base_url, _URL_VARIABLE, _DEFAULT_URL)
    key = find_key(options.api_key_env, base_url)
    return OpenAiTeacher(settings, options, label, Endpoint(base_url, key, options.timeouts))


def _check_fields(setting: str, fields: Iterable[str], label: LabelSettings) -> None:
    for name in set(fields) & _FORBIDDEN_FIELDS.keys():
        raise RecipeError("it cannot be set here", setting=f"{setting}.{name}", fix=_FORBIDDEN_FIELDS[name])
    if label.budget_usd is not None:
        for name in set(fields) & _UNPRICED_FIELDS:
            raise RecipeError(
                "it changes the cost of a request in a way that the price does not include, so label.budget_usd "
                f"({label.budget_usd:g}) cannot be enforced",
                setting=f"{setting}.{name}",
                fix="remove one of the two",
            )


def _check_encodable(settings: TeacherSettings, options: OpenAiOptions, label: LabelSettings) -> None:
    """Refuse settings that are part of every request and cannot be encoded as JSON.

    Raises:
        RecipeError: a setting contains a number of more than 64 bits or a lone surrogate.
    """
    sent_with_every_request = {
        "teacher.model": settings.model,
        "teacher.options.extra_body": options.extra_body,
        "teacher.options.continue_body": options.continue_body,
        "label.response_format": label.response_format,
    }
    for name, value in sent_with_every_request.items():
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError as error:
            raise RecipeError(
                f"it contains a value that cannot be sent ({error})", setting=name, fix="write it in another way"
            ) from None


class OpenAiTeacher:
    """A teacher behind an OpenAI-compatible API; the protocol is `Teacher` in base.py."""

    batch_size = 1
    parallel = None

    def __init__(
        self, settings: TeacherSettings, options: OpenAiOptions, label: LabelSettings, endpoint: Endpoint
    ) -> None:
        self._settings = settings
        self._options = options
        self._label = label
        self._endpoint = endpoint
        self._api = OpenAiApi(endpoint)
        self._fingerprint: str | None = None

    @property
    def identity(self) -> TeacherIdentity:
        shaping = {"api": self._options.api, "extra_body": self._options.extra_body}
        return TeacherIdentity(
            kind="openai",
            model=self._settings.model,
            revision=self._settings.revision,
            endpoint=self._endpoint.base_url,
            fingerprint=self._fingerprint,
            options_sha256=content_hash(shaping),
            continuing=self._continuing,
        )

    @property
    def _continuing(self) -> str | None:
        """How to continue an assistant turn: a hash of the fields to send, "" if none are needed, None if impossible."""
        if self._options.api == "completions" or self._options.continue_body == {}:
            return ""
        return None if self._options.continue_body is None else content_hash(self._options.continue_body)

    @cached_property
    def price(self) -> Price | None:
        return find_price(self._settings, self._endpoint.base_url)

    @property
    def why_no_price(self) -> str:
        return why_no_price(self._settings, self._endpoint.base_url)

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        return [await self._one(request) for request in requests]

    async def close(self) -> None:
        await self._api.close()

    async def _one(self, request: Request) -> Outcome:
        chat = self._options.api == "chat"
        reply = await self._api.post("/chat/completions" if chat else "/completions", self._body(request))
        return reply if isinstance(reply, Refusal) else self.read(reply)

    def _body(self, request: Request) -> dict[str, Any]:
        label, options = self._label, self._options
        body: dict[str, Any] = {
            "model": self._settings.model,
            "temperature": label.sampling.temperature,
            options.max_tokens_field: label.sampling.max_tokens,
        }
        if label.sampling.top_p < 1:
            body["top_p"] = label.sampling.top_p
        if options.api == "chat":
            body["messages"] = [message.as_dict() for message in request.prompt.messages]
        else:
            body["prompt"] = "\n".join(message.content for message in request.prompt.messages)
        if label.top_logprobs is not None:
            requested = {"logprobs": True, "top_logprobs": label.top_logprobs}
            body |= requested if options.api == "chat" else {"logprobs": label.top_logprobs}
        if label.response_format is not None:
            body["response_format"] = label.response_format
        continue_body = options.continue_body if request.prompt.continues and options.api == "chat" else None
        return {
            name: value
            for name, value in {**body, **options.extra_body, **(continue_body or {})}.items()
            if value is not None
        }

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
        return self._batches.account

    def batch_line(self, request: Request) -> bytes:
        line = {"custom_id": request.key, "method": "POST", "url": self._batch_url, "body": self._body(request)}
        return orjson.dumps(line)

    async def submit_batch(self, job: str, file: Path) -> str:
        return await self._batches.submit(job, file, self._batch_url, self._options.batch.window)

    async def find_batch(self, job: str, *, requests: int, since: datetime) -> str | None:
        return await self._batches.find(job)

    async def read_batch(self, remote_id: str) -> RemoteBatch:
        return await self._batches.read(remote_id)

    async def batch_results(self, remote_id: str, folder: Path) -> AsyncIterator[BatchResult]:
        async for line in self._batches.lines(remote_id, folder):
            yield self._batch_result(line)

    async def cancel_batch(self, remote_id: str) -> None:
        await self._batches.cancel(remote_id)

    async def remove_batch_files(self, job: str, remote_id: str | None) -> None:
        await self._batches.remove_files(job, remote_id)

    @property
    def _batch_url(self) -> str:
        return "/v1/chat/completions" if self._options.api == "chat" else "/v1/completions"

    @cached_property
    def _batches(self) -> OpenAiBatches:
        return OpenAiBatches(self._endpoint, self._api)

    def _batch_result(self, line: Mapping[str, Any]) -> BatchResult:
        """Parse a line of a job's results, as the response of a single request is parsed."""
        custom_id, response = _text(line.get("custom_id")), _mapping(line.get("response"))
        body, status = _mapping(response.get("body")), response.get("status_code")
        try:
            if status == 200 and body:
                return BatchResult(custom_id, self.read(Reply(body, 0.0), self.batch_price))
            error = read_error(line) or read_error(body) or ErrorBody("the line has neither a response nor an error")
            return BatchResult(custom_id, self._api.classify(status if isinstance(status, int) else 500, error))
        except AttemptFailed as failure:
            return BatchResult(custom_id, None, failure.detail)
        except TeacherRefused as refused:
            return BatchResult(custom_id, None, str(refused), refuses_all=True)

    def read(self, reply: Reply, price: Price | None = None) -> Outcome:
        """Turn a complete response into an outcome; it was paid for, so it is not requested again unless it is an error.

        `price` is what the answer costs; None: the online price.
        """
        data = reply.data
        usage = _mapping(data.get("usage"))
        prompt_tokens, completion_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        cost = self._cost(prompt_tokens, completion_tokens, usage, price or self.price)
        if error := read_error(data):
            return self._api.classify(200, error, cost_usd=cost)
        try:
            choice = data["choices"][0]
            message = _mapping(choice["message"]) if self._options.api == "chat" else {"content": choice["text"]}
            finish = str(choice.get("finish_reason") or "other").lower()
        except (KeyError, IndexError, TypeError, AttributeError):
            raise AttemptFailed("malformed", "status 200 without a readable choice", cost_usd=cost) from None
        if finish == "error":  # a partial text or none, without a reason
            raise AttemptFailed("server-error", "status 200 with finish_reason 'error'", cost_usd=cost)
        self._fingerprint = _text(data.get("system_fingerprint")) or self._fingerprint
        answer = Answer(
            text=_text(message.get("content")),
            finish_reason=finish_reason_of(finish),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost_usd=cost,
            reasoning=_text(message.get("reasoning_content")) or _text(message.get("reasoning")) or None,
            token_logprobs=_token_logprobs(_mapping(choice.get("logprobs"))),
            pause=reply.pause,
        )
        if refusal := _text(message.get("refusal")):
            return Refusal("refused", refusal, answer=answer)
        if not answer.text.strip():
            return Refusal("empty", f"the answer has no text (finish_reason {finish})", answer=answer)
        return answer

    def _cost(
        self, prompt: int | None, completion: int | None, usage: Mapping[str, Any], price: Price | None
    ) -> float | None:
        if price is None or prompt is None or completion is None:
            return None
        details = _mapping(usage.get("prompt_tokens_details"))
        cached, written = (_count(details, name) or 0 for name in ("cached_tokens", "cache_write_tokens"))
        return price.cost(prompt, completion, cached, written)


def _mapping(given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, dict) else {}


def _count(given: Mapping[str, Any], name: str) -> int | None:
    """Return a token count, or None if the field is not a valid one."""
    count = given.get(name)
    if isinstance(count, bool) or not isinstance(count, (int, float)) or not 0 <= count <= _MAX_TOKENS:
        return None
    return int(count)


def _text(given: Any) -> str:
    """Return a text, joining the texts of a list of parts ([{"type": "text", "text": ...}]); "" for anything else."""
    if isinstance(given, list):
        return "".join(_text(part.get("text")) for part in given if isinstance(part, dict))
    return given if isinstance(given, str) else ""


def _token_logprobs(given: Mapping[str, Any]) -> tuple[TokenLogprob, ...] | None:
    """Parse the chat format (a list of tokens under `content`) or the legacy completions format (parallel lists).

    Returns None if neither can be parsed: the text was paid for and counts without them.
    """
    try:
        if given.get("content") is not None:
            return tuple(
                _token(
                    one["token"],
                    one["logprob"],
                    [(top["token"], top["logprob"]) for top in one.get("top_logprobs") or ()],
                )
                for one in given["content"]
            )
        if given.get("tokens") is not None:
            tops = given.get("top_logprobs") or [None] * len(given["tokens"])
            listed = zip(given["tokens"], given["token_logprobs"], tops, strict=True)
            return tuple(_token(token, logprob, (top or {}).items()) for token, logprob, top in listed)
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    return None


def _token(token: Any, logprob: Any, top: Iterable[tuple[Any, Any]]) -> TokenLogprob:
    return TokenLogprob(str(token), float(logprob), tuple((str(name), float(value)) for name, value in top))
