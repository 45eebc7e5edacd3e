"""A teacher without a model: the completion of a prompt is its reference.

    teacher: {kind: reference}
    label:   {mode: score}

So gold data is an ordinary dataset, and training on references (`student.mode: gold`, `teacher.finetune`) is training on a
dataset. The mode is `score`, where the reference is part of a request's key: a corrected reference is a new row.
"""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.errors import RecipeError
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import TeacherIdentity
from stillhouse.settings import Settings, parse_options
from stillhouse.teachers.base import Answer, Outcome, Refusal, Request
from stillhouse.teachers.prices import FREE

_BATCH_SIZE = 1000  # requests per call, and so per commit of the journal


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> ReferenceTeacher:
    """Check the recipe and return the teacher.

    Raises:
        RecipeError: the recipe needs something that references do not have, such as soft labels.
    """
    parse_options("teacher.options", settings.options, Settings)  # this kind has no options
    if label.mode != "score":
        raise RecipeError(
            "with teacher.kind 'reference' nothing is generated",
            setting="label.mode",
            value=label.mode,
            fix="set it to 'score'",
        )
    if label.soft is not None or label.top_logprobs:
        raise RecipeError(
            "references have no distribution, and label.soft or label.top_logprobs is set",
            setting="teacher.kind",
            value="reference",
            fix="set both to null",
        )
    return ReferenceTeacher(settings.model or "references")


class ReferenceTeacher:
    """Answers each prompt with its reference; the protocol is `Teacher` in base.py."""

    batch_size = _BATCH_SIZE
    parallel = 1
    price = FREE

    def __init__(self, model: str) -> None:
        self.identity = TeacherIdentity("reference", model, continuing="")

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        return [_answer(request) for request in requests]

    async def close(self) -> None:
        """Do nothing: there are no resources to free."""


def _answer(request: Request) -> Outcome:
    if not isinstance(request.forced, str):
        return Refusal("no-reference", "the prompt has no reference")
    return Answer(request.forced, "stop", prompt_tokens=None, completion_tokens=None, cost_usd=0.0)
