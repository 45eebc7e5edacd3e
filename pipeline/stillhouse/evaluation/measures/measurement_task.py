"""The models to measure, and the rows to measure them on. No torch here: these classes are sent to other processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stillhouse.recipe.evaluate import EvaluateSettings
from stillhouse.records import Completion
from stillhouse.student.vocabulary_map import VocabularyMap


@dataclass(frozen=True)
class ModelToMeasure:
    """One model to measure."""

    role: str  # its label in the report
    name: str  # folder or hub id, for the report
    folder: Path
    is_teacher: bool = False
    shares_tokenizer: bool = True  # whether its tokens can be compared with the teacher's
    is_int8: bool = False  # a student's quantised copy
    trust_remote_code: bool = False  # as set in teacher.options or the student's settings
    vocabulary_map: VocabularyMap | None = None  # of a student with a reduced vocabulary


@dataclass(frozen=True)
class MeasurementTask:
    """The rows and settings of a measurement."""

    rows: tuple[Completion, ...]  # held out
    settings: EvaluateSettings
    max_tokens: int  # of an answer
    vocabulary: int  # size of the teacher's; 0: unknown
    soft: bool  # whether the rows have soft labels
    prompts: tuple[Completion, ...] = ()  # rows whose prompts every model answers
