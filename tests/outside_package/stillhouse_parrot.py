"""A teacher that repeats what it hears, a filter against shouting and a metric, by somebody who cannot edit Stillhouse.

teacher: {kind: parrot, model: polly, options: {sleepy: 1}}
quality: [{kind: no-shouting, at_most: 0.5}]
evaluate: {metrics: [{kind: loudness, of: letters}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from stillhouse.evaluation.metrics.base import Floats, ratio
from stillhouse.quality.base import Filter
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import Completion, TeacherIdentity
from stillhouse.settings import Settings, parse_options
from stillhouse.teachers.base import Answer, AttemptFailed, Outcome, Refusal, Request
from stillhouse.teachers.prices import FREE


class ShoutingOptions(Settings):
    """Options of `no-shouting`."""

    at_most: float = Field(default=0.5, ge=0, le=1)  # share of letters that may be capitals


def open_filter(options: dict[str, Any]) -> Filter:
    """Reject what is mostly capitals."""
    at_most = parse_options("quality.no-shouting", options, ShoutingOptions).at_most

    def judge(completion: Completion) -> str | None:
        letters = [letter for letter in completion.text if letter.isalpha()]
        share = sum(map(str.isupper, letters)) / max(1, len(letters))
        return f"{share:.0%} of its letters are capitals, more than at_most={at_most}" if share > at_most else None

    return judge


class LoudnessOptions(Settings):
    """Options of `loudness`."""

    of: Literal["letters", "characters"] = "letters"


class Loudness:
    """Capitals too many or too few, against the reference: a share of the reference's length, over all answers together."""

    name = "loudness off by"
    lower_is_better = True
    percent = True
    digits = 0

    def __init__(self, options: LoudnessOptions) -> None:
        self._of = options.of

    def statistics(self, answer: str, reference: str) -> tuple[float, float]:
        capitals = [sum(map(str.isupper, text)) for text in (answer, reference)]
        return abs(capitals[0] - capitals[1]), sum(self._of == "characters" or letter.isalpha() for letter in reference)

    def score(self, totals: Floats) -> Floats:
        return ratio(totals)


def open_metric(options: dict[str, Any]) -> Loudness:
    """How loud answers are."""
    return Loudness(parse_options("evaluate.metrics.loudness", options, LoudnessOptions))


class ParrotOptions(Settings):
    """Options of `parrot`."""

    sleepy: int = Field(default=0, ge=0)  # calls that it sleeps through before it wakes


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> Parrot:
    """A parrot; `model` is its name."""
    return Parrot(settings.model, parse_options("teacher.options", settings.options, ParrotOptions).sleepy)


class Parrot:
    """Repeats the prompt, but no questions."""

    batch_size = 1
    parallel = 1
    price = FREE

    def __init__(self, name: str, sleepy: int) -> None:
        self.identity = TeacherIdentity("parrot", name)
        self._sleepy = sleepy

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        if self._sleepy:
            self._sleepy -= 1
            raise AttemptFailed("asleep", "the parrot sleeps", wait=0.01)
        return [self._repeat(request.prompt.text) for request in requests]

    def _repeat(self, heard: str) -> Outcome:
        if heard.endswith("?"):
            return Refusal("a-question", "parrots answer no questions")
        return Answer(heard, "stop", prompt_tokens=len(heard.split()), completion_tokens=len(heard.split()))

    async def close(self) -> None:
        """Parrots go by themselves."""
