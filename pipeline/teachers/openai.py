"""An OpenAI-compatible API: text, what it cost, and token log-probabilities where the API gives them.

    teacher: {kind: openai, model: gpt-4o-mini}
    teacher: {kind: openai, model: my-model, options: {base_url: "http://127.0.0.1:8000/v1"}}

The key comes from the environment (`OPENAI_API_KEY`, or the variable that `options.api_key_env` names), never from the
recipe. A server on this machine needs none. Token ids, and so soft labels, are not in this API: the `vllm` and
`transformers` kinds give them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from pipeline.config import LabelSettings, Settings, TeacherSettings, parse_options
from pipeline.errors import RecipeError
from pipeline.openai_api import Endpoint, OpenAiApi, Reply, Timeouts
from pipeline.pricing import Price, find_price
from pipeline.records import FinishReason, TeacherIdentity, TokenLogprob, content_hash
from pipeline.teachers.base import Answer, Outcome, Refusal, Request, TryAgain

_DEFAULT_URL = "https://api.openai.com/v1"
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


class OpenAiOptions(Settings):
    """`teacher.options` of this kind."""

    base_url: str | None = None  # None: OPENAI_BASE_URL, or else OpenAI's own
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key
    api: Literal["chat", "completions"] = "chat"
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # reasoning models want the second
    extra_body: dict[str, Any] = Field(default_factory=dict)  # further fields of the body; null takes one of ours out
    timeouts: Timeouts = Timeouts()


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> OpenAiTeacher:
    """Check the options and find the key; nothing is sent yet."""
    options = parse_options("teacher.options", settings.options, OpenAiOptions)
    if not settings.model:
        raise RecipeError("teacher.model is empty: name the model as the API does, for instance gpt-4o-mini")
    if label.soft is not None:
        raise RecipeError(
            "label.soft is set, and teacher.kind 'openai' gives no token ids: set label.soft to null and student.mode to "
            "'black-box', or take a teacher of kind 'vllm' or 'transformers'"
        )
    if label.mode == "score":
        raise RecipeError("label.mode is 'score', and teacher.kind 'openai' can only generate: take 'transformers'")
    base_url = _base_url(options)
    return OpenAiTeacher(settings, options, label, Endpoint(base_url, _key(options, base_url), options.timeouts))


class OpenAiTeacher:
    """See the module's docstring; `Teacher` in base.py is the protocol."""

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
        )

    @cached_property
    def price(self) -> Price | None:
        return find_price(self._settings, self._endpoint.base_url)

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        return [await self._one(request) for request in requests]

    async def close(self) -> None:
        await self._api.close()

    async def _one(self, request: Request) -> Outcome:
        chat = self._options.api == "chat"
        reply = await self._api.post("/chat/completions" if chat else "/completions", self._body(request))
        return reply if isinstance(reply, Refusal) else self._read(reply)

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
            wanted = {"logprobs": True, "top_logprobs": label.top_logprobs}
            body |= wanted if options.api == "chat" else {"logprobs": label.top_logprobs}
        if label.response_format is not None:
            body["response_format"] = label.response_format
        return {name: value for name, value in {**body, **options.extra_body}.items() if value is not None}

    def _read(self, reply: Reply) -> Outcome:
        """An answer that arrived whole; it is never asked for again, whatever it says."""
        data = reply.data
        self._fingerprint = data.get("system_fingerprint") or self._fingerprint
        usage = data.get("usage") or {}
        cost = self._cost(usage)
        try:
            choice = data["choices"][0]
            message = choice["message"] if self._options.api == "chat" else {"content": choice["text"]}
            text, finish = message.get("content"), str(choice.get("finish_reason") or "other").lower()
            answer = Answer(
                text=text or "",
                finish_reason=_FINISH.get(finish, "other"),
                prompt_tokens=usage.get("prompt_tokens"),
                completion_tokens=usage.get("completion_tokens"),
                cost_usd=cost,
                reasoning=message.get("reasoning_content") or message.get("reasoning") or None,
                token_logprobs=_token_logprobs(choice.get("logprobs")),
                pause=reply.pause,
            )
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            said = str(data.get("error") or "no choices")[:200]
            raise TryAgain("malformed", f"status 200 without a choice to read ({said})", cost_usd=cost) from None
        if message.get("refusal"):
            return Refusal("refused", str(message["refusal"]), answer=answer)
        if not answer.text.strip():
            return Refusal("empty", f"the answer has no text (finish_reason {finish})", answer=answer)
        return answer

    def _cost(self, usage: Mapping[str, Any]) -> float | None:
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if self.price is None or prompt is None or completion is None:
            return None
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return self.price.cost(prompt, completion, cached)


def _token_logprobs(given: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...] | None:
    """The chat form (a list of tokens under `content`), or the older one of completions (parallel lists)."""
    if not given:
        return None
    if given.get("content") is not None:
        return tuple(
            TokenLogprob(
                one["token"],
                one["logprob"],
                tuple((top["token"], top["logprob"]) for top in one.get("top_logprobs") or ()),
            )
            for one in given["content"]
        )
    if given.get("tokens") is not None:
        tops = given.get("top_logprobs") or [{}] * len(given["tokens"])
        listed = zip(given["tokens"], given["token_logprobs"], tops, strict=True)
        return tuple(TokenLogprob(token, logprob, tuple((top or {}).items())) for token, logprob, top in listed)
    return None


def _base_url(options: OpenAiOptions) -> str:
    url = options.base_url or os.environ.get("OPENAI_BASE_URL") or _DEFAULT_URL
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise RecipeError(f"teacher.options.base_url is {url!r}: give a URL such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise RecipeError(
            "teacher.options.base_url carries a user, a password or a query: a recipe holds no secrets. Put the key into "
            f"the environment variable {options.api_key_env}"
        )
    return url.rstrip("/")


def _key(options: OpenAiOptions, base_url: str) -> SecretStr:
    key = os.environ.get(options.api_key_env, "")
    if key:
        return SecretStr(key)
    if urlsplit(base_url).hostname in _LOCAL:
        return SecretStr("none")
    raise RecipeError(
        f"teacher.kind is 'openai' at {base_url}, and the environment variable {options.api_key_env} is not set: "
        f"export {options.api_key_env}=..., or name another variable in teacher.options.api_key_env"
    )
