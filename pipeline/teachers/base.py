"""The seam between the labelling engine and whatever answers: one small protocol.

A kind of teacher is a module in this folder (or an entry point `stillhouse.teachers`) with one function

    def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> Teacher

Opening is cheap: it finds out who the teacher is and checks its options, and loads nothing heavy; `answer` does. So a
run that has nothing left to ask never loads a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import pipeline.teachers
from pipeline.config import LabelSettings, SamplingSettings, SoftSettings, TeacherSettings
from pipeline.plugins import load_kind
from pipeline.records import FinishReason, Prompt, TeacherIdentity, TokenTrace, content_hash


@dataclass(frozen=True)
class Request:
    """One question to a teacher. `key` hashes everything that shapes the answer, and nothing else."""

    prompt: Prompt
    sample: int
    teacher: TeacherIdentity
    sampling: SamplingSettings
    soft: SoftSettings | None
    forced: str | None = None  # in score mode: the text that the teacher is forced along

    @cached_property
    def key(self) -> str:
        shaping = {
            "messages": [message.as_dict() for message in self.prompt.messages],
            "teacher": self.teacher.shaping(),
            "soft": self.soft.model_dump() if self.soft else None,
            "sample": self.sample,
            "forced": self.forced,
            "sampling": self.sampling.model_dump() if self.forced is None else None,
        }
        return content_hash(shaping)


@dataclass(frozen=True)
class Answer:
    """What a teacher wrote, or was forced along."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None = None
    trace: TokenTrace | None = None


@dataclass(frozen=True)
class Refusal:
    """A prompt that this teacher cannot answer; the others go on."""

    reason: str  # one word or two, to be counted by: "too-long"
    detail: str
    attempts: int = 1


Outcome = Answer | Refusal


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

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        """One outcome a request, in the order of the requests.

        Raises:
            TeacherUnavailable: nobody can be answered at all.
        """

    async def close(self) -> None: ...


OpenTeacher = Callable[[TeacherSettings, LabelSettings, int], Teacher]


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> Teacher:
    """The teacher that a recipe names, not loaded yet.

    Raises:
        RecipeError: there is no such kind, or its options are wrong.
        TeacherUnavailable: its model is not there.
    """
    build: OpenTeacher = load_kind(
        "teacher.kind", settings.kind, pipeline.teachers, "open_teacher", group="stillhouse.teachers"
    )
    return build(settings, label, seed)
