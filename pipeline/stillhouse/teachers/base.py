"""The seam between the labelling engine and whatever answers: one small protocol.

A kind of teacher is a module in this folder (or an entry point `stillhouse.teachers`) with one function

    def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> Teacher

Opening is cheap: it finds out who the teacher is and checks its options, and loads nothing heavy; `answer` does. So a
run that has nothing left to ask never loads a model.

A teacher makes one attempt a call and says what came of it: an `Answer`, a `Refusal` of one prompt, or, by raising,
`TryAgain` or `TeacherUnavailable`. Trying again, pacing, limits and the budget are the engine's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import stillhouse.teachers
from stillhouse.errors import TemplateRefused
from stillhouse.plugins import TEACHERS, load_kind
from stillhouse.progress import Progress
from stillhouse.recipe.label import LabelSettings, SamplingSettings, SoftSettings
from stillhouse.recipe.load import TeacherSettings
from stillhouse.records import FinishReason, Prompt, TeacherIdentity, TokenLogprob, TokenTrace, content_hash
from stillhouse.teachers.prices import Price


@dataclass(frozen=True)
class Terms:
    """What shapes every answer of a run alike."""

    teacher: TeacherIdentity
    sampling: SamplingSettings | None  # None in score mode, where nothing is drawn
    soft: SoftSettings | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None

    @classmethod
    def of(cls, teacher: TeacherIdentity, label: LabelSettings) -> Terms:
        """The terms of a recipe's labelling."""
        drawn = label.sampling if label.mode == "generate" else None
        return cls(teacher, drawn, label.soft, label.top_logprobs, label.response_format)

    @cached_property
    def id(self) -> str:
        """A hash of all of it: part of every request's key."""
        shaping = {
            "teacher": self.teacher.shaping(),
            "sampling": self.sampling.model_dump() if self.sampling else None,
            "soft": self.soft.model_dump() if self.soft else None,
            "top_logprobs": self.top_logprobs,
            "response_format": self.response_format,
        }
        return content_hash(shaping)

    def key(self, prompt_id: str, sample: int, forced: str | None, *, continues: bool = False) -> str:
        """The key of one request: 32 hex digits over everything that shapes its answer, and nothing else.

        Args:
            prompt_id: `Prompt.id`.
            sample: which of several answers to the prompt.
            forced: in score mode, the text that the teacher is forced along.
            continues: `Prompt.continues`; it counts where the teacher is then asked in another way.
        """
        way = f"+{self.teacher.continuing}" if continues and self.teacher.continuing else ""
        told = f"{self.id}:{prompt_id}{way}:{sample}:{'' if forced is None else 'forced:' + forced}"
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True)
class Request:
    """One question to a teacher."""

    prompt: Prompt
    sample: int
    terms: Terms
    forced: str | None = None  # in score mode: the text that the teacher is forced along

    @cached_property
    def key(self) -> str:
        return self.terms.key(self.prompt.id, self.sample, self.forced, continues=self.prompt.continues)


@dataclass(frozen=True)
class Answer:
    """What a teacher wrote, or was forced along. Token counts and the cost are None where nobody told them."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None = None
    trace: TokenTrace | None = None
    reasoning: str | None = None
    token_logprobs: tuple[TokenLogprob, ...] | None = None
    pause: float = 0.0  # seconds in which the server wants no further request, by its rate-limit headers


@dataclass(frozen=True)
class Refusal:
    """A prompt that this teacher cannot answer; the others go on."""

    reason: str  # one word or two, to be counted by: "too-long"
    detail: str
    attempts: int = 1
    answer: Answer | None = None  # what came back and was billed, useless as it is: an empty text
    suspect: str | None = None  # the status, or the failure, that every prompt may get; None: it is this prompt's own


Outcome = Answer | Refusal


def template_refusal(error: TemplateRefused) -> Refusal:
    """A prompt that the model's chat template cannot render; it is not sent."""
    return Refusal("template", f"the model's chat template refuses the prompt: {error}")


class TryAgain(Exception):
    """One attempt failed in a way that the next may not. The engine tries again; no user meets this."""

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        of_server: bool = False,
        overloaded: bool = False,
        wait: float = 0.0,
        cost_usd: float | None = 0.0,
    ) -> None:
        """
        Args:
            reason: one word or two, to be counted by if it never gets better: "timeout".
            detail: what a person should know of it.
            of_server: it says nothing of this prompt (a refused connection, 429): it is tried for as long as the server is
                given, and not so many times.
            overloaded: fewer requests at once may help.
            wait: seconds that the server asked to wait.
            cost_usd: what this attempt cost; None where it may have been billed and nobody knows.
        """
        super().__init__(detail)
        self.reason, self.detail = reason, detail
        self.of_server, self.overloaded = of_server, overloaded
        self.wait, self.cost_usd = wait, cost_usd


class Teacher(Protocol):
    """Answers requests. Each call gets up to `batch_size` of them; the engine keeps up to `parallel` calls going."""

    @property
    def identity(self) -> TeacherIdentity: ...

    @property
    def batch_size(self) -> int:
        """Requests that one call takes: 1 for a server, as many as the memory bears for a model in this process."""

    @property
    def parallel(self) -> int | None:
        """Calls it bears at once; None: as many as `label.concurrency` says."""

    @property
    def price(self) -> Price | None:
        """What it charges; None where that is not known."""

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        """One outcome a request, in the order of the requests; one attempt.

        Raises:
            TryAgain: this attempt gave nothing, another may.
            TeacherUnavailable: nobody can be answered at all.
        """

    async def close(self) -> None: ...


@runtime_checkable
class ExplainsPrice(Protocol):
    """A teacher that can say why its price is not known."""

    @property
    def why_no_price(self) -> str:
        """Half a sentence for messages; asked only where `price` is None."""


def why_no_price(teacher: Teacher) -> str:
    """Why a teacher's price is not known; empty where it is known, or where the teacher does not say."""
    return teacher.why_no_price if teacher.price is None and isinstance(teacher, ExplainsPrice) else ""


@runtime_checkable
class Prepares(Protocol):
    """A teacher that must be got ready before the first request of a run: started, or checked."""

    async def prepare(self, progress: Progress) -> None:
        """Called once, and not at all where nothing is left to ask.

        Raises:
            TeacherUnavailable: it is not there, or not as the recipe says.
        """


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at in a teacher."""

    where: str  # a server's base URL
    what: str
    well: bool
    said: str  # the figures; where it is not well, the mend too


@runtime_checkable
class Checks(Protocol):
    """A teacher that can be looked at: `stillhouse teacher check`."""

    async def check(self, progress: Progress) -> Sequence[Finding]:
        """Everything that can be looked at."""


@runtime_checkable
class Serves(Protocol):
    """A teacher whose server can be started by itself: `stillhouse teacher serve`."""

    async def serve(self, progress: Progress) -> str:
        """Start it, wait until it is ready, and return its base URL; `close` ends it.

        Raises:
            RecipeError: the recipe does not say how.
            TeacherUnavailable: it did not start.
        """


@dataclass(frozen=True)
class AskedWith:
    """A setting of the recipe that shaped answers, and was no part of the name that they are kept under."""

    path: str  # dotted: "teacher.options.serve.dtype"
    value: object
    default: object  # what a recipe that does not say it means


@dataclass(frozen=True)
class FormerIdentity:
    """Another name under which this teacher's answers may be kept: of an earlier release, or of other settings.

    They count where the recipe that they were asked with has the same `asked_with`.
    """

    identity: TeacherIdentity
    asked_with: tuple[AskedWith, ...] = ()


@runtime_checkable
class Renamed(Protocol):
    """A teacher whose answers may be kept under another name than its identity gives them today."""

    def former(self, kept: Callable[[], Sequence[TeacherIdentity]]) -> Sequence[FormerIdentity]:
        """Those names; `kept` reads who the dataset's versions say their teachers are."""


OpenTeacher = Callable[[TeacherSettings, LabelSettings, int], Teacher]


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> Teacher:
    """The teacher that a recipe names, not loaded yet.

    Raises:
        RecipeError: there is no such kind, or its options are wrong.
        TeacherUnavailable: its model is not there.
    """
    return find_kind(settings.kind)(settings, label, seed)


def find_kind(kind: str) -> OpenTeacher:
    """What opens a kind of teacher.

    Raises:
        RecipeError: there is no such kind.
    """
    build: OpenTeacher = load_kind("teacher.kind", kind, stillhouse.teachers, "open_teacher", group=TEACHERS)
    return build
