"""A teacher that repeats what it hears, and a filter against shouting, by somebody who cannot edit Stillhouse.

teacher: {kind: parrot, model: polly, options: {sleepy: 1}}
quality: [{kind: no-shouting, at_most: 0.5}]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from pipeline.config import LabelSettings, TeacherSettings
from pipeline.pricing import FREE
from pipeline.quality.base import Filter
from pipeline.records import Completion, TeacherIdentity
from pipeline.settings import Settings, parse_options
from pipeline.teachers.base import Answer, Outcome, Refusal, Request, TryAgain


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
            raise TryAgain("asleep", "the parrot sleeps", wait=0.01)
        return [self._repeat(request.prompt.text) for request in requests]

    def _repeat(self, heard: str) -> Outcome:
        if heard.endswith("?"):
            return Refusal("a-question", "parrots answer no questions")
        return Answer(heard, "stop", prompt_tokens=len(heard.split()), completion_tokens=len(heard.split()))

    async def close(self) -> None:
        """Parrots go by themselves."""
