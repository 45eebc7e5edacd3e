"""Turn a logged request to OpenAI's API and its response into rows, with the request keys that labelling would use.

    interpret = LogReader(base_url="https://api.openai.com/v1")
    for row in interpret(request, response, place, False): ...

A recipe that sends the same requests (same model, endpoint, messages, sampling and further parameters) finds the imported
answers by their keys, and pays nothing. A row gets a key only if the log has everything that shapes an answer; otherwise it
records why not. Parameters without a setting in recipes (a seed, a penalty) enter the key as they would through
`teacher.options.extra_body`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import SecretStr, ValidationError

from stillhouse.exchange.base import ImportedAnswer, Json, Read, RequestKey, SkippedRow, SourceLine
from stillhouse.exchange.conversations import parse_messages
from stillhouse.recipe.label import LabelSettings, SamplingSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import Message, Prompt, content_hash
from stillhouse.teachers.base import Answer, AnswerSettings, AttemptFailed, Refusal
from stillhouse.teachers.openai import OpenAiOptions, OpenAiTeacher
from stillhouse.teachers.serving.openai_api import NO_KEY, Endpoint, Reply, Timeouts

OPENAI_URL = "https://api.openai.com/v1"
BATCH_PRICE = 0.5  # OpenAI's Batch API costs half
_UNKNOWN = "unknown"

_SETTINGS = {"model", "messages", "prompt", "temperature", "top_p", "max_tokens", "max_completion_tokens"}
_SETTINGS |= {"logprobs", "top_logprobs", "response_format"}
_NOT_SHAPING = {"n", "user", "metadata", "store", "stream", "stream_options", "service_tier", "safety_identifier"}
_NOT_SHAPING |= {"prompt_cache_key", "prompt_cache_retention", "timeout", "extra_headers"}
_DEFAULTS: Mapping[str, tuple[Any, ...]] = {  # the API's defaults: sending them explicitly does not change the request
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "stop": ([],),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "echo": (False,),
}


@dataclass(frozen=True)
class _LoggedRequest:
    """The parameters of a request other than its messages, and what follows from them."""

    teacher: OpenAiTeacher  # parses answers and computes their cost; sends nothing
    answer_settings: AnswerSettings
    key_problem: str  # "" if the log has everything that shapes an answer
    sampling: SamplingSettings | None


class LogReader:
    """Reads logged requests, see the module's docstring; `Interpret` in exchange/base.py is the protocol."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._known: dict[str, _LoggedRequest] = {}

    def __call__(self, request: Json, response: Json, place: SourceLine, batch: bool) -> Iterator[Read]:
        """Yield the rows of one request, one per choice."""
        prompt = _prompt(request, place)
        if isinstance(prompt, SkippedRow):
            yield prompt
            return
        logged = self._logged_request(request, response)
        choices = response.get("choices")
        if not isinstance(choices, list) or not choices:
            yield SkippedRow("malformed", "the response has no choices", place)
            return
        for number, choice in enumerate(sorted(choices, key=_choice_index)):
            usage = response.get("usage") if number == 0 else None  # one count for all choices: given to the first
            read = self._read(logged, prompt, {**response, "choices": [choice], "usage": usage}, place, number)
            if isinstance(read, ImportedAnswer):
                halved = batch and self._base_url == OPENAI_URL and read.cost_usd is not None
                cost = (read.cost_usd or 0) * BATCH_PRICE if halved else read.cost_usd
                odd = _why_not_reproducible(request)
                read = replace(read, cost_usd=cost, request=odd or read.request)
            yield read

    def _read(self, logged: _LoggedRequest, prompt: Prompt, data: Json, place: SourceLine, number: int) -> Read:
        message = data["choices"][0].get("message") if isinstance(data["choices"][0], dict) else None
        if isinstance(message, dict) and (message.get("tool_calls") or message.get("function_call")):
            return SkippedRow("tool-calls", "the answer is a tool call, which a row cannot contain", place)
        try:
            outcome = logged.teacher.read(Reply(data, 0.0))
        except AttemptFailed as error:
            return SkippedRow(error.reason, str(error), place)
        if isinstance(outcome, Refusal):
            return SkippedRow(outcome.reason, outcome.detail, place)
        assert isinstance(outcome, Answer)
        # Without a finish reason in the log, the answer counts as complete.
        has_finish_reason = data["choices"][0].get("finish_reason") is not None
        served, answer_id = data.get("model"), data.get("id")
        return ImportedAnswer(
            prompt,
            outcome.text,
            place,
            finish_reason=outcome.finish_reason if has_finish_reason else "stop",
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            cost_usd=outcome.cost_usd,
            reasoning=outcome.reasoning,
            token_logprobs=outcome.token_logprobs,
            created_at=_iso_time(data.get("created")),
            teacher=replace(logged.teacher.identity, fingerprint=served if isinstance(served, str) else None),
            sampling=logged.sampling,
            request=logged.key_problem
            or RequestKey(
                logged.answer_settings.id, lambda prompt_id, sample: logged.answer_settings.key(prompt_id, sample, None)
            ),
            answer_id=f"{answer_id}:{number}" if isinstance(answer_id, str) and answer_id else None,
        )

    def _logged_request(self, request: Json, response: Json) -> _LoggedRequest:
        shaping = {name: value for name, value in request.items() if name not in {"messages", "prompt"}}
        name = content_hash(["prompt" in request, shaping, response.get("model") if "model" not in request else None])
        if name not in self._known:
            self._known[name] = self._build_request(request, response)
        return self._known[name]

    def _build_request(self, request: Json, response: Json) -> _LoggedRequest:
        api: Literal["chat", "completions"] = "chat" if "messages" in request else "completions"
        given = {name: value for name, value in request.items() if value is not None and not _is_default(name, value)}
        extra = {name: value for name, value in given.items() if name not in _SETTINGS | _NOT_SHAPING}
        why = "" if isinstance(request.get("model"), str) else "the model is not in the request"
        label, reason = self._label(given, api)
        if "best_of" in extra:
            reason = "best_of is set, which a recipe cannot set"
        model = str(request.get("model") or response.get("model") or _UNKNOWN)
        settings = TeacherSettings(kind="openai", model=model)
        options = OpenAiOptions(base_url=self._base_url, api=api, extra_body=extra)
        endpoint = Endpoint(self._base_url, SecretStr(NO_KEY), Timeouts())
        teacher = OpenAiTeacher(settings, options, label, endpoint)
        why = why or reason
        return _LoggedRequest(
            teacher, AnswerSettings.from_label(teacher.identity, label), why, None if why else label.sampling
        )

    def _label(self, given: Json, api: str) -> tuple[LabelSettings, str]:
        """Return the label settings that give the same request, and why there are none ("" if there are)."""
        limits = [given[name] for name in ("max_tokens", "max_completion_tokens") if name in given]
        if len(limits) != 1:
            return (
                LabelSettings(),
                "max_tokens is not in the request" if not limits else "the request has two token limits",
            )
        temperature = given.get("temperature", 1.0 if self._base_url == OPENAI_URL else None)
        if temperature is None:
            return (
                LabelSettings(),
                f"the temperature is not in the request, and the default of {self._base_url} is unknown",
            )
        top_logprobs = given.get("logprobs") if api == "completions" else None
        if api == "chat" and given.get("logprobs") is True:
            top_logprobs = given.get("top_logprobs", 0)
        try:
            sampling = {"temperature": temperature, "top_p": given.get("top_p", 1.0), "max_tokens": limits[0]}
            settings = {
                "sampling": sampling,
                "top_logprobs": top_logprobs,
                "response_format": given.get("response_format"),
            }
            return LabelSettings.model_validate(settings), ""
        except ValidationError as error:
            first = error.errors()[0]
            return (
                LabelSettings(),
                f"a recipe cannot send this request: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            )


def _prompt(request: Json, place: SourceLine) -> Prompt | SkippedRow:
    if "messages" in request:
        read = parse_messages(request["messages"], place)
        return read if isinstance(read, SkippedRow) else Prompt(tuple(read))
    text = request.get("prompt")
    if not isinstance(text, str):
        found = "several prompts" if "prompt" in request else "neither messages nor a prompt"
        return SkippedRow("other-endpoint", f"the request has {found}", place)
    return Prompt((Message("user", text),))


def _why_not_reproducible(request: Json) -> str:
    """Return why labelling would not send exactly these messages, although their text is the same; "" if it would."""
    for turn in request.get("messages", ()):
        if turn["role"] not in {"system", "user", "assistant"}:
            return f"a message's role is {turn['role']!r}"
        more = {name for name, value in turn.items() if value is not None} - {"role", "content"}
        if more or not isinstance(turn["content"], str):
            return "a message has more than a role and text"
    return ""


def _is_default(name: str, value: Any) -> bool:
    defaults = _DEFAULTS.get(name, ())
    return any(value == default and isinstance(value, bool) == isinstance(default, bool) for default in defaults)


def _choice_index(choice: Any) -> int:
    index = choice.get("index") if isinstance(choice, dict) else None
    return index if isinstance(index, int) else 0


def _iso_time(created: Any) -> str | None:
    if isinstance(created, bool) or not isinstance(created, (int, float)) or not 0 < created < 2**33:
        return None
    return datetime.fromtimestamp(created, UTC).isoformat(timespec="seconds")
