"""Which models are measured, and on what. Nothing here needs torch, so that it can be handed to another process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stillhouse.recipe.evaluate import EvaluateSettings
from stillhouse.records import Completion
from stillhouse.student.renumbering import Renumbering


@dataclass(frozen=True)
class Subject:
    """One model to be measured."""

    role: str
    name: str  # for the report
    folder: Path
    is_teacher: bool = False
    shares_tokenizer: bool = True  # with the teacher: else nothing can be compared token by token
    is_int8: bool = False  # a student's quantised copy
    trust_remote_code: bool = False  # as teacher.options or the student says
    renumbering: Renumbering | None = None  # of a student with a part of the teacher's tokens


@dataclass(frozen=True)
class Task:
    """What every model is measured on."""

    rows: tuple[Completion, ...]  # held out
    settings: EvaluateSettings
    max_tokens: int  # of an answer
    vocabulary: int  # the teacher's, 0 where it is not known
    soft: bool  # whether the rows have soft labels
    asked: tuple[Completion, ...] = ()  # whose prompts every model answers
