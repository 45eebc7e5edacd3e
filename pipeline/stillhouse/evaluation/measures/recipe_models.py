"""The models of a recipe to measure: its teacher, and its students with their quantised copies."""

from __future__ import annotations

import dataclasses

from stillhouse.dataset.store import Dataset
from stillhouse.evaluation.measures.measurement_task import ModelToMeasure
from stillhouse.models.files import ModelFiles
from stillhouse.models.find import can_load_in_process, teacher_files
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.student.finished.folder import StudentFolder
from stillhouse.student.vocabulary_map import shares_tokenizer, vocabulary_map_for
from stillhouse.teachers.live import teacher_options


def teacher_models(recipe: Recipe) -> list[ModelToMeasure]:
    """Return the teacher; empty if it is not a model that can run on this machine."""
    if not can_load_in_process(recipe.teacher):
        return []
    files = teacher_files(recipe)
    trusted = teacher_options(recipe).trust_remote_code
    return [ModelToMeasure("teacher", files.name, files.folder, is_teacher=True, trust_remote_code=trusted)]


def student_models(role: str, place: StudentFolder, student: StudentSettings, dataset: Dataset) -> list[ModelToMeasure]:
    """Return a finished student, and its quantised copy if the settings request one; `role` is its label in the report."""
    files = ModelFiles(str(place.path), place.path)
    tokenizer = dataset.manifest.teacher.tokenizer_sha256
    one = ModelToMeasure(
        role,
        files.name,
        files.folder,
        shares_tokenizer=shares_tokenizer(files, tokenizer),
        trust_remote_code=student.trust_remote_code,
        vocabulary_map=vocabulary_map_for(files, tokenizer),
    )
    if not place.wants_int8:
        return [one]
    copy = dataclasses.replace(one, role=f"{role}, int8", name=str(place.int8), folder=place.int8, is_int8=True)
    return [one, copy]
