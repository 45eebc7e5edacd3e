"""No model at all: the completion of a prompt is the reference that came with it.

    teacher: {kind: reference}
    label:   {mode: score}

So a gold dataset is a dataset like any other, and whoever learns from references (`student.mode: gold`, `teacher.finetune`)
learns from a dataset. The mode is `score`, where the reference is part of a request's key: a mended one is a new row.
"""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.errors import RecipeError
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.load import TeacherSettings
from stillhouse.records import TeacherIdentity
from stillhouse.settings import Settings, parse_options
from stillhouse.teachers.base import Answer, Outcome, Refusal, Request
from stillhouse.teachers.prices import FREE

_AT_ONCE = 1000  # requests a call: one commit of the journal for so many


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> ReferenceTeacher:
    """See the module's docstring.

    Raises:
        RecipeError: the recipe asks for what no reference has.
    """
    parse_options("teacher.options", settings.options, Settings)  # there are none
    if label.mode != "score":
        raise RecipeError(
            f"teacher.kind is 'reference' and label.mode is {label.mode!r}: references are there and not drawn, set "
            "label.mode to 'score'"
        )
    if label.soft is not None or label.top_logprobs:
        raise RecipeError(
            "teacher.kind is 'reference', and label.soft or label.top_logprobs is set: references have no distribution, "
            "set both to null"
        )
    return ReferenceTeacher(settings.model or "references")


class ReferenceTeacher:
    """`Teacher` in base.py is the protocol."""

    batch_size = _AT_ONCE
    parallel = 1
    price = FREE

    def __init__(self, model: str) -> None:
        self.identity = TeacherIdentity("reference", model, continuing="")

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        return [_answer(request) for request in requests]

    async def close(self) -> None:
        """Nothing is held."""


def _answer(request: Request) -> Outcome:
    if request.forced is None:
        return Refusal("no-reference", "the prompt came with no reference")
    return Answer(request.forced, "stop", prompt_tokens=None, completion_tokens=None, cost_usd=0.0)
