"""A vLLM server: text and top-k soft labels by token id, generated or scored along a reference.

    teacher: {kind: vllm, model: Qwen/Qwen3-32B, options: {base_urls: ["http://127.0.0.1:8000/v1"]}}
    teacher: {kind: vllm, model: data/models/smollm2-135m-instruct, options: {serve: {dtype: float32}}}

Prompts are sent as token ids, made here with the model's tokenizer and chat template, and responses are read by token id,
because a token's text is ambiguous. Log-probabilities are the server's raw ones, before temperature and top-p. The servers
are checked before a run's first request (serving/check.py). A server started by `serve` is restarted if it dies.

A request that was in flight when an engine died is suspected of killing it, and is retried with no other request in flight.
If the engine dies again, that request is rejected as `killed-engine` and the others continue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from stillhouse.errors import RecipeError, TemplateRefused
from stillhouse.inputs.urls import check_base_url
from stillhouse.models.files import ModelFiles
from stillhouse.models.find import find_model
from stillhouse.progress import Progress
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import FinishReason, TeacherIdentity, TokenTrace
from stillhouse.settings import Settings, parse_options
from stillhouse.teachers.base import (
    Answer,
    AttemptFailed,
    Finding,
    FormerIdentity,
    Outcome,
    Refusal,
    Request,
    refuse_unknown_tokens,
    template_refusal,
)
from stillhouse.teachers.prices import FREE, Price, find_price
from stillhouse.teachers.serving.check import CheckSettings, Expected
from stillhouse.teachers.serving.environment import read_key
from stillhouse.teachers.serving.openai_api import Timeouts
from stillhouse.teachers.serving.shared_lock import SharedLock
from stillhouse.teachers.serving.vllm_answers import VllmAnswer, read_generated, read_scored
from stillhouse.teachers.serving.vllm_identity import former_vllm_identities, vllm_identity
from stillhouse.teachers.serving.vllm_requests import generation_body, scoring_body
from stillhouse.teachers.serving.vllm_server import ServeSettings
from stillhouse.teachers.serving.vllm_servers import VllmServers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
_DIED = ("EngineCore", "EngineDead")  # in vLLM's messages when the engine behind its API has died


class VllmOptions(Settings):
    """`teacher.options` of this kind."""

    base_urls: tuple[str, ...] = Field(default=(), description="running servers, replicas of one model")
    serve: ServeSettings | None = Field(default=None, description="or settings of a server to start for the run")
    served_name: str | None = Field(default=None, description="the model's name on the servers; None: teacher.model")
    api_key_env: str = Field(
        default="VLLM_API_KEY", description="the environment variable with the API key, if the servers need one"
    )
    timeouts: Timeouts = Field(default=Timeouts(), description="timeouts of a request")
    check: CheckSettings = Field(default_factory=CheckSettings, description="checks of the server before labelling")

    @model_validator(mode="after")
    def _one_kind_of_server(self) -> VllmOptions:
        if bool(self.base_urls) == (self.serve is not None):
            raise ValueError(
                "set exactly one of `base_urls` (servers that already run) and `serve` (a server to start)"
            )
        return self


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> VllmTeacher:
    """Find the tokenizer and check the options; nothing is sent or started yet."""
    options = parse_options("teacher.options", settings.options, VllmOptions)
    listed = enumerate(options.base_urls)
    urls = tuple(check_base_url(url, f"teacher.options.base_urls[{number}]") for number, url in listed)
    options = options.model_copy(update={"base_urls": urls})
    _check_label(label)
    files = find_model(settings.model, settings.revision, weights=options.check.parity)
    if files.is_encoder_decoder:
        raise RecipeError(
            f"it is an encoder-decoder ({files.config.get('model_type')}), and teacher.kind 'vllm' runs only causal models",
            setting="teacher.model",
            value=files.name,
            fix="set teacher.kind to transformers",
        )
    read_key(options.api_key_env)
    return VllmTeacher(settings, options, label, files)


def _check_label(label: LabelSettings) -> None:
    """Refuse label settings that vLLM cannot follow."""
    if label.mode == "score" and label.soft is None:
        raise RecipeError(
            "scoring without soft labels stores nothing to learn from",
            setting="label.soft",
            value=None,
            fix="set it to {k: 20}, or label.mode to 'generate'",
        )
    if label.soft is not None and label.soft.encoding != "top-k":
        raise RecipeError(
            "vLLM returns only the most likely tokens",
            setting="label.soft.encoding",
            value=label.soft.encoding,
            fix="set label.soft to {encoding: top-k, k: 20}, or use teacher.kind 'transformers'",
        )
    if label.top_logprobs is not None:
        raise RecipeError(
            "it is for APIs that return no token ids",
            setting="label.top_logprobs",
            value=label.top_logprobs,
            fix="remove it, and set label.soft, which teacher.kind 'vllm' supports",
        )


class VllmTeacher:
    """A teacher on vLLM servers; the protocols are `Teacher`, `Prepares`, `Checks` and `Serves` in base.py."""

    batch_size = 1
    parallel = None

    def __init__(
        self, settings: TeacherSettings, options: VllmOptions, label: LabelSettings, files: ModelFiles
    ) -> None:
        self._settings = settings
        self._options = options
        self._label = label
        self._files = files
        self._k = label.soft.k if label.soft else None
        self._lock = SharedLock()
        self._suspected: Counter[str] = Counter()  # request key -> engines that died while it was in flight
        self._fingerprint: str | None = None
        self._served_name = options.served_name or settings.model
        self._servers = VllmServers(
            Expected(files, self._served_name, self._k),
            options.check,
            base_urls=options.base_urls,
            serve=options.serve,
            api_key_env=options.api_key_env,
            timeouts=options.timeouts,
        )

    @property
    def identity(self) -> TeacherIdentity:
        return vllm_identity(self._files, self._options.serve, self._fingerprint)

    def former(self, stored: Callable[[], Sequence[TeacherIdentity]]) -> Sequence[FormerIdentity]:
        """Return the former names of this teacher; see vllm_identity.py."""
        return former_vllm_identities(self._files, self._options.serve, stored)

    @cached_property
    def price(self) -> Price | None:
        """Zero, unless the recipe sets a price for tokens on the user's hardware."""
        return FREE if self._settings.price is None else find_price(self._settings, "")

    async def prepare(self, progress: Progress) -> None:
        """Start the server of `options.serve`, if set, and check every server."""
        await self._servers.prepare(progress)

    async def check(self, progress: Progress) -> Sequence[Finding]:
        """Start the server of `options.serve`, if set, and run every check on every server."""
        return await self._servers.check(progress)

    async def serve(self, progress: Progress) -> str:
        """Start the server of `options.serve`."""
        return await self._servers.start(progress)

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        return [await self._answer_one(request) for request in requests]

    def body(self, request: Request) -> Mapping[str, Any]:
        """Return the body sent to /v1/completions for a request."""
        return self._body(request, *self._encode(request))

    async def close(self) -> None:
        await self._servers.close()

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from stillhouse.models.load import load_tokenizer

        return load_tokenizer(self._files.folder)

    async def _answer_one(self, request: Request) -> Outcome:
        try:
            prompt, forced = self._encode(request)
        except TemplateRefused as error:
            return template_refusal(error)
        answer_tokens = len(forced) if request.forced is not None else self._label.sampling.max_tokens
        if too_long := self._too_long(len(prompt), answer_tokens):
            return too_long
        body = self._body(request, prompt, forced)
        suspected = self._suspected[request.key] > 0
        async with self._lock.exclusive() if suspected else self._lock.shared():
            await self._servers.ensure_running()
            try:
                content = await self._servers.fetch(body, check_health=suspected)
            except AttemptFailed as failure:
                return self._handle_failure(failure, request, was_alone=suspected)
        if isinstance(content, Refusal):
            return content
        try:
            read = (
                read_generated(content.body, self._k)
                if request.forced is None
                else read_scored(content.body, self._k or 0, forced)
            )
        except ValueError as error:
            return self._servers.handle_unreadable(content.body, error)
        if read.finish_reason == "error":
            raise AttemptFailed("server-error", "status 200 with finish_reason 'error'", cost_usd=None)
        self._fingerprint = read.fingerprint or self._fingerprint
        return self._as_answer(request, prompt, forced, read)

    def _too_long(self, prompt_tokens: int, answer_tokens: int) -> Refusal | None:
        """Refuse what does not fit into the context window: the server would silently truncate the answer."""
        window = self._servers.window
        if not window or prompt_tokens + answer_tokens <= window:
            return None
        return Refusal(
            "too-long",
            f"the prompt has {prompt_tokens} tokens and the answer needs {answer_tokens}: more than the server's context "
            f"window of {window}",
        )

    def _handle_failure(self, failure: AttemptFailed, request: Request, *, was_alone: bool) -> Refusal:
        """Handle a failed attempt: if the engine died, suspect the request; if it was already alone, reject it."""
        died = failure.reason == "cut-off" or any(word in failure.detail for word in _DIED)
        if not died:
            raise failure
        self._suspected[request.key] += 1
        if was_alone:
            return Refusal(
                "killed-engine",
                "the engine died twice during this request, the second time with no other request in flight: "
                f"{failure.detail}",
            )
        raise AttemptFailed("engine-died", failure.detail, server_at_fault=True)

    def _encode(self, request: Request) -> tuple[list[int], list[int]]:
        from stillhouse.models.load import completion_ids, encode_prompt

        prompt = encode_prompt(self._tokenizer, request.prompt.messages)
        if request.forced is None:
            return prompt, []
        if not isinstance(request.forced, str):
            refuse_unknown_tokens(request.forced, self._files.vocabulary_size)
            return prompt, list(request.forced)
        end = self._tokenizer.eos_token_id
        return prompt, completion_ids(self._tokenizer, request.forced, [] if end is None else [int(end)])

    def _body(self, request: Request, prompt: Sequence[int], forced: Sequence[int]) -> Mapping[str, Any]:
        if request.forced is None:
            return generation_body(self._served_name, prompt, self._label.sampling, self._k)
        return scoring_body(self._served_name, prompt, forced, self._k)

    def _as_answer(self, request: Request, prompt: Sequence[int], forced: Sequence[int], read: VllmAnswer) -> Outcome:
        import numpy as np

        trace = None
        if read.soft is not None and read.logprobs is not None:
            reported = read.prompt_token_ids
            prompt_ids = np.asarray(prompt, np.int32) if reported is None or request.forced is not None else reported
            trace = TokenTrace(prompt_ids, read.token_ids, read.logprobs, read.soft)
        completion_tokens = len(read.token_ids)
        cost = (
            self.price.cost(len(prompt), completion_tokens) if self.price is not None and self.price != FREE else None
        )
        if request.forced is not None:
            if isinstance(request.forced, str):
                return Answer(request.forced, "stop", len(prompt), completion_tokens, cost, trace)
            text = request.prompt.trimmed(str(self._tokenizer.decode(list(forced), skip_special_tokens=True)))
            reason: FinishReason = (
                "stop" if forced[-1] in {self._tokenizer.eos_token_id, *self._files.end_ids} else "length"
            )
            return Answer(text, reason, len(prompt), completion_tokens, cost, trace)
        answer = Answer(
            request.prompt.trimmed(read.text),
            _FINISH.get(read.finish_reason, "other"),
            len(prompt),
            completion_tokens,
            cost,
            trace,
        )
        return answer if answer.text else Refusal("empty", "the answer has no text", answer=answer)
