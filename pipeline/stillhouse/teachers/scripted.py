"""A rule-based teacher for tests, here and in users' projects: deterministic text and distributions.

    teacher: {kind: scripted, options: {answers: {"What is 2 + 2?": "4"}, vocabulary: 64}}

Its text is the answer listed for the user's message, or an echo of that message. Its tokens are the bytes of the text
modulo the vocabulary, and its distribution at each position is a fixed function of the position and the token, so a test
can compute the expected labels (`scripted_distribution`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stillhouse.recipe.label import LabelSettings, SoftSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import SampledLabels, SoftLabels, TeacherIdentity, TokenTrace, content_hash
from stillhouse.settings import Settings, parse_options
from stillhouse.teachers.base import Answer, Outcome, Refusal, Request
from stillhouse.teachers.prices import FREE


class ScriptedOptions(Settings):
    """`teacher.options` of this kind."""

    answers: dict[str, str] = Field(default_factory=dict, description="user message -> answer")
    refuse: tuple[str, ...] = Field(default=(), description="user messages to refuse")
    vocabulary: int = Field(default=256, ge=2, description="number of tokens")
    batch_size: int = Field(default=8, ge=1, description="prompts answered in one call")


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> ScriptedTeacher:
    """Check the options and return the teacher."""
    return ScriptedTeacher(
        settings.model or "scripted", parse_options("teacher.options", settings.options, ScriptedOptions)
    )


class ScriptedTeacher:
    """Answers by rule. To count requests, a test sets `asked` to a list; each request is then appended to it."""

    parallel = None
    price = FREE

    def __init__(self, model: str, options: ScriptedOptions) -> None:
        self._model = model
        self._options = options
        self.asked: list[Request] | None = None

    @property
    def batch_size(self) -> int:
        return self._options.batch_size

    @cached_property
    def identity(self) -> TeacherIdentity:
        script = content_hash([self._options.model_dump(exclude={"batch_size"})])
        return TeacherIdentity(
            "scripted",
            self._model,
            content_sha256=script,
            vocabulary_size=self._options.vocabulary,
            continuing="",
        )

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        if self.asked is not None:
            self.asked += requests
        return [self._answer(request) for request in requests]

    async def close(self) -> None:
        """Do nothing: there are no resources to free."""

    def _answer(self, request: Request) -> Outcome:
        message = request.prompt.text
        if message in self._options.refuse:
            return Refusal("refused", "the script refuses this prompt")
        forced = request.forced
        if isinstance(forced, tuple):
            text, tokens = " ".join(map(str, forced)), np.array(forced, dtype=np.int32)
        else:
            text = forced if forced is not None else self._text(message, request.sample)
            tokens = scripted_tokens(text, self._options.vocabulary)
        limit = request.answer_settings.sampling.max_tokens if request.answer_settings.sampling else len(tokens)
        prompt_tokens = scripted_tokens(message, self._options.vocabulary)
        return Answer(
            text=text,
            finish_reason="stop" if len(tokens) <= limit else "length",
            prompt_tokens=len(prompt_tokens),
            completion_tokens=min(len(tokens), limit),
            cost_usd=0.0,
            trace=self._trace(prompt_tokens, tokens[:limit], request.answer_settings.soft)
            if request.answer_settings.soft
            else None,
        )

    def _text(self, message: str, sample: int) -> str:
        text = self._options.answers.get(message, f"echo: {message}")
        return f"{text} ({sample})" if sample else text

    def _trace(self, prompt: npt.NDArray[np.int32], tokens: npt.NDArray[np.int32], soft: SoftSettings) -> TokenTrace:
        full = scripted_distribution(tokens, self._options.vocabulary)  # (time, vocabulary)
        chosen = np.log(full[np.arange(len(tokens)), tokens]).astype(np.float32)
        labels = _top_k(full, soft.k) if soft.k else _sampled(full, soft.draws or 0)
        return TokenTrace(prompt, tokens, chosen, labels)


def _top_k(full: npt.NDArray[np.float64], k: int) -> SoftLabels:
    k = min(k, full.shape[1])
    order = np.argsort(-full, axis=1, kind="stable")[:, :k]
    listed = np.take_along_axis(full, order, axis=1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.clip(1 - listed.sum(axis=1), 0, 1))
    return SoftLabels(order.astype(np.int32), np.log(listed).astype(np.float16), tail.astype(np.float32))


def _sampled(full: npt.NDArray[np.float64], draws: int) -> SampledLabels:
    """Return deterministic labels: the tokens at evenly spaced quantiles of the distribution, (t + 1/2) / draws."""
    places = (np.arange(draws) + 0.5) / draws
    return SampledLabels.from_draws(
        np.stack([np.searchsorted(row, places * row[-1], side="right") for row in full.cumsum(1)])
    )


def scripted_tokens(text: str, vocabulary: int) -> npt.NDArray[np.int32]:
    """Return the token ids of a text: its bytes modulo the vocabulary, then a 0 as end token: (time,)."""
    return np.array([*(byte % vocabulary for byte in text.encode()), 0], dtype=np.int32)


def scripted_distribution(tokens: npt.NDArray[np.int32], vocabulary: int) -> npt.NDArray[np.float64]:
    """Return the distribution at each position: half on the token, halving with each id after it: (time, vocabulary)."""
    distance = (np.arange(vocabulary)[None, :] - tokens[:, None]) % vocabulary
    weights = 0.5 ** (distance + 1.0)
    normalised: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised
