"""The interface between the labelling engine and a teacher: one small protocol.

A kind of teacher is a module in this folder (or an entry point `stillhouse.teachers`) with one function

    def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> Teacher

Opening is cheap: it identifies the teacher and checks its options, and loads nothing heavy; `answer` does. So a run with no
requests left to send never loads a model.

A teacher makes one attempt per call and reports the result: an `Answer`, a `Refusal` of one prompt, or, by raising,
`AttemptFailed` or `TeacherUnavailable`. Retries, pacing, limits and the budget are handled by the engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import stillhouse.teachers
from stillhouse.errors import TeacherUnavailable, TemplateRefused
from stillhouse.plugins import TEACHERS, load_kind
from stillhouse.progress import Progress
from stillhouse.recipe.label import LabelSettings, SamplingSettings, SoftSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import FinishReason, Prompt, TeacherIdentity, TokenLogprob, TokenTrace, content_hash
from stillhouse.teachers.prices import Price

_BYTES_A_TOKEN = 4

Forced = str | tuple[int, ...]  # a completion to score: its text, or token ids of the teacher


@dataclass(frozen=True)
class AnswerSettings:
    """The settings that shape every answer of a run."""

    teacher: TeacherIdentity
    sampling: SamplingSettings | None  # None in score mode, which does not sample
    soft: SoftSettings | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None

    @classmethod
    def from_label(cls, teacher: TeacherIdentity, label: LabelSettings) -> AnswerSettings:
        """Return the answer settings of a recipe's labelling."""
        sampling = label.sampling if label.mode == "generate" else None
        return cls(teacher, sampling, label.soft, label.top_logprobs, label.response_format)

    @cached_property
    def id(self) -> str:
        """A hash of all these settings, part of every request's key."""
        shaping = {
            "teacher": self.teacher.shaping(),
            "sampling": self.sampling.model_dump() if self.sampling else None,
            "soft": self.soft.model_dump() if self.soft else None,
            "top_logprobs": self.top_logprobs,
            "response_format": self.response_format,
        }
        return content_hash(shaping)

    def key(self, prompt_id: str, sample: int, forced: Forced | None, *, continues: bool = False) -> str:
        """Return the key of one request: 32 hex digits over everything that shapes its answer, and nothing else.

        Args:
            prompt_id: `Prompt.id`.
            sample: the index among several answers to the prompt.
            forced: in score mode, what the teacher scores.
            continues: `Prompt.continues`; it changes the key if the teacher is then called differently.
        """
        continuing = f"+{self.teacher.continuing}" if continues and self.teacher.continuing else ""
        identified = f"{self.id}:{prompt_id}{continuing}:{sample}:{_identified(forced)}"
        return hashlib.sha256(identified.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _identified(forced: Forced | None) -> str:
    """Return what a request's key has of the completion to score."""
    if forced is None:
        return ""
    return f"forced:{forced}" if isinstance(forced, str) else f"forced-tokens:{','.join(map(str, forced))}"


@dataclass(frozen=True)
class Request:
    """One prompt for the teacher to answer, or to score a completion of (teacher forcing)."""

    prompt: Prompt
    sample: int
    answer_settings: AnswerSettings
    forced: Forced | None = None  # in score mode

    @cached_property
    def key(self) -> str:
        return self.key_under(self.answer_settings)

    def key_under(self, answer_settings: AnswerSettings) -> str:
        """Return the key that this request has with other answer settings."""
        return answer_settings.key(self.prompt.id, self.sample, self.forced, continues=self.prompt.continues)

    @property
    def forced_bytes(self) -> int:
        """Size of the completion to score, in bytes of text; of token ids a rule of thumb."""
        if self.forced is None or isinstance(self.forced, str):
            return len((self.forced or "").encode())
        return len(self.forced) * _BYTES_A_TOKEN


@dataclass(frozen=True)
class Answer:
    """A generated or scored text. Token counts and the cost are None if they are not known."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None = None
    trace: TokenTrace | None = None
    reasoning: str | None = None
    token_logprobs: tuple[TokenLogprob, ...] | None = None
    pause: float = 0.0  # seconds until the next request may be sent, by the rate-limit headers


@dataclass(frozen=True)
class Refusal:
    """A prompt that this teacher cannot answer; other prompts are not affected."""

    reason: str  # one or two words, used as a counting key: "too-long"
    detail: str
    attempts: int = 1
    answer: Answer | None = None  # a billed but unusable answer, such as an empty text
    suspect: str | None = None  # the status or failure that every prompt may get; None: it concerns this prompt only


Outcome = Answer | Refusal


def template_refusal(error: TemplateRefused) -> Refusal:
    """Return the refusal of a prompt that the chat template cannot render; the prompt is not sent."""
    return Refusal("template", f"the model's chat template cannot render the prompt: {error}")


class AttemptFailed(Exception):
    """An attempt failed, and another may succeed. The engine retries; users never see this error."""

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        server_at_fault: bool = False,
        overloaded: bool = False,
        wait: float = 0.0,
        cost_usd: float | None = 0.0,
    ) -> None:
        """
        Args:
            reason: one or two words, used as a counting key if all retries fail: "timeout".
            detail: a message for people.
            server_at_fault: whether the failure says nothing about this prompt (a refused connection, 429); it is then
                retried for `label.patience` seconds rather than for a few attempts.
            overloaded: whether fewer concurrent requests may help.
            wait: seconds to wait, as requested by the server.
            cost_usd: the cost of this attempt; None if it may have been billed and the cost is not known.
        """
        super().__init__(detail)
        self.reason, self.detail = reason, detail
        self.server_at_fault, self.overloaded = server_at_fault, overloaded
        self.wait, self.cost_usd = wait, cost_usd


class Teacher(Protocol):
    """Answers requests. Each call gets up to `batch_size` requests; the engine makes up to `parallel` calls at once."""

    @property
    def identity(self) -> TeacherIdentity: ...

    @property
    def batch_size(self) -> int:
        """Requests per call: 1 for a server, as many as fit in memory for a model in this process."""

    @property
    def parallel(self) -> int | None:
        """The limit on concurrent calls; None: `label.concurrency`."""

    @property
    def price(self) -> Price | None:
        """The teacher's price; None if it is not known."""

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        """Make one attempt and return one outcome per request, in the order of the requests.

        Raises:
            AttemptFailed: this attempt failed, and another may succeed.
            TeacherUnavailable: the teacher can answer no request at all.
        """

    async def close(self) -> None:
        """Free what `answer` or `prepare` opened. A teacher that was only opened holds nothing and may be dropped."""


@runtime_checkable
class ExplainsPrice(Protocol):
    """A teacher that can explain why its price is not known."""

    @property
    def why_no_price(self) -> str:
        """A clause for messages; read only if `price` is None."""


def why_no_price(teacher: Teacher) -> str:
    """Return why a teacher's price is not known; empty if it is known, or if the teacher gives no reason."""
    return teacher.why_no_price if teacher.price is None and isinstance(teacher, ExplainsPrice) else ""


@runtime_checkable
class Prepares(Protocol):
    """A teacher that must be started or checked before the first request of a run."""

    async def prepare(self, progress: Progress) -> None:
        """Prepare the teacher; called once, and not at all if no request is left to send.

        Raises:
            TeacherUnavailable: the teacher cannot be reached, or does not match the recipe.
        """


@dataclass(frozen=True)
class Finding:
    """The result of one check of a teacher."""

    server: str  # a server's base URL
    check: str
    passed: bool
    detail: str  # the figures and, if the check failed, the fix


@runtime_checkable
class Checks(Protocol):
    """A teacher that can be checked: `stillhouse teacher check`."""

    async def check(self, progress: Progress) -> Sequence[Finding]:
        """Run every available check."""


@runtime_checkable
class Serves(Protocol):
    """A teacher whose server can be started separately: `stillhouse teacher serve`."""

    async def serve(self, progress: Progress) -> str:
        """Start the server, wait until it is ready, and return its base URL; `close` stops it.

        Raises:
            RecipeError: the recipe has no settings for a server.
            TeacherUnavailable: the server did not start.
        """


@dataclass(frozen=True)
class OmittedSetting:
    """A recipe setting that shaped answers but was not part of the name under which they are stored."""

    path: str  # dotted: "teacher.options.serve.dtype"
    value: object
    default: object  # the value if the recipe does not set it


@dataclass(frozen=True)
class FormerIdentity:
    """Another name under which this teacher's answers may be stored: from an earlier release, or from other settings.

    Such answers are valid if the recipe that produced them has the same `omitted_settings` values.
    """

    identity: TeacherIdentity
    omitted_settings: tuple[OmittedSetting, ...] = ()


@runtime_checkable
class Renamed(Protocol):
    """A teacher whose answers may be stored under another name than its current identity."""

    def former(self, stored: Callable[[], Sequence[TeacherIdentity]]) -> Sequence[FormerIdentity]:
        """Return those names; `stored` reads the teacher identities from the manifests of the dataset's versions."""


OpenTeacher = Callable[[TeacherSettings, LabelSettings, int], Teacher]


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> Teacher:
    """Return the teacher that a recipe names, not loaded yet.

    Raises:
        RecipeError: the kind does not exist, or its options are wrong.
        TeacherUnavailable: the model's files are missing.
    """
    return find_teacher_kind(settings.kind)(settings, label, seed)


def refuse_unknown_tokens(forced: Sequence[int], vocabulary: int) -> None:
    """Refuse token ids to score that are not the teacher's.

    Raises:
        TeacherUnavailable: an id is larger than the teacher's largest.
    """
    if max(forced) >= vocabulary:
        raise TeacherUnavailable(
            f"a completion has the token {max(forced)}, and the teacher has only {vocabulary:,} tokens",
            setting="prompts.score_tokens",
            fix="give token ids of the teacher's own tokenizer",
        )


def find_teacher_kind(kind: str) -> OpenTeacher:
    """Return the function that opens a kind of teacher.

    Raises:
        RecipeError: the kind does not exist.
    """
    open_kind: OpenTeacher = load_kind("teacher.kind", kind, stillhouse.teachers, "open_teacher", group=TEACHERS)
    return open_kind
