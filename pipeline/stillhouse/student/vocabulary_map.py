"""vocabulary.json in a student's folder: the map from the student's token ids to the teacher's.

    vocabulary_map = vocabulary_map_for(files, dataset.manifest.teacher.tokenizer_sha256)
    vocabulary_map.student_ids(token_ids)          # -1 where the student has no such token

A student with the part of the teacher's vocabulary that its dataset uses (`student.init.vocabulary: used`) numbers its
tokens from 0 in the teacher's order. Datasets keep the teacher's ids; they are renumbered when rows are read.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillhouse.models.files import ModelFiles
from stillhouse.storage.durable import write_atomically

FILE = "vocabulary.json"
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class VocabularyMap:
    """The map from the student's token ids to the teacher's."""

    teacher_ids: Ids  # (student's tokens,), ascending: the teacher's id of each
    teacher_sha256: str  # of the teacher's tokenizer
    student_sha256: str  # of the student's

    def __len__(self) -> int:
        """Return the number of the student's tokens."""
        return len(self.teacher_ids)

    def student_ids(self, teacher_ids: Ids) -> Ids:
        """Map teacher ids of any shape to student ids; -1 where the student has no such token."""
        return self._student_id_of[np.minimum(teacher_ids, len(self._student_id_of) - 1)]

    @cached_property
    def _student_id_of(self) -> Ids:
        """The student id of each teacher id; the last entry serves all higher ids, and -1."""
        places = np.full(int(self.teacher_ids[-1]) + 2, -1, dtype=np.int32)
        places[self.teacher_ids] = np.arange(len(self.teacher_ids), dtype=np.int32)
        return places

    def write(self, folder: Path) -> None:
        """Write the map into a student's folder."""
        content = {
            "teacher_tokenizer_sha256": self.teacher_sha256,
            "tokenizer_sha256": self.student_sha256,
            "teacher_token_ids": self.teacher_ids.tolist(),
        }
        write_atomically(folder / FILE, json.dumps(content).encode() + b"\n")


def read_vocabulary_map(folder: Path) -> VocabularyMap | None:
    """Read the vocabulary map in a student's folder; None if it has none."""
    file = folder / FILE
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    return VocabularyMap(
        np.array(content["teacher_token_ids"], dtype=np.int32),
        content["teacher_tokenizer_sha256"],
        content["tokenizer_sha256"],
    )


def copy_vocabulary_map(source: Path, folder: Path) -> None:
    """Copy the vocabulary map, if any, to another folder with the same tokenizer."""
    if (source / FILE).is_file():
        shutil.copyfile(source / FILE, folder / FILE)


def vocabulary_map_for(student: ModelFiles, tokenizer_sha256: str | None) -> VocabularyMap | None:
    """Return the map from a teacher's tokenizer to the student's.

    Args:
        student: the student's files.
        tokenizer_sha256: hash of the teacher's tokenizer; None if it is not known.

    Returns:
        None if the student numbers its tokens as that teacher does, or if its tokenizer was not cut out of the teacher's.
    """
    if tokenizer_sha256 is None or tokenizer_sha256 == student.tokenizer_sha256:
        return None
    found = read_vocabulary_map(student.folder)
    if found is None or (found.teacher_sha256, found.student_sha256) != (tokenizer_sha256, student.tokenizer_sha256):
        return None
    return found


def shares_tokenizer(student: ModelFiles, tokenizer_sha256: str | None) -> bool:
    """Whether the student's tokens are the teacher's, all or (renumbered) a part; an unknown tokenizer counts as yes."""
    same = tokenizer_sha256 is None or student.tokenizer_sha256 == tokenizer_sha256
    return same or vocabulary_map_for(student, tokenizer_sha256) is not None
