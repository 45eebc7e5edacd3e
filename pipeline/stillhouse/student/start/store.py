"""What was measured of a teacher, kept on disk: a second student of the same teacher and rows measures nothing again.

    data/students/.importance/<key>/layers.json      what each layer is worth, by each method that was asked for
                                    widths.npz       what each neuron, head and channel does

The key names the content of the teacher and of the rows. What is known is written after every step, so that a run that is
stopped goes on where it was. Students of a sweep that are trained side by side share it, one measuring at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from stillhouse.dataset.store import Dataset
from stillhouse.errors import StudentBusy
from stillhouse.models.files import ModelFiles
from stillhouse.progress import Progress
from stillhouse.recipe.load import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.records import content_hash
from stillhouse.storage.durable import sole_writer, write_atomically
from stillhouse.student.start.importance import Removal, Scores

FOLDER = ".importance"
_LOOK_EVERY = 0.2  # seconds, at measurements that another run makes
_LAYERS, _WIDTHS = "layers.json", "widths.npz"


class Known(BaseModel):
    """What has been measured of the layers; see importance.py for the units."""

    model_config = ConfigDict(frozen=True)

    leave_one_out: Scores | None = None
    block_influence: Scores | None = None
    greedy: dict[str, Removal] = {}  # by stack


class ImportanceStore:
    """The measurements of one teacher on certain rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, recipe: Recipe, student: StudentSettings, teacher: ModelFiles, dataset: Dataset) -> ImportanceStore:
        """The store of a student's teacher and rows."""
        rows = [file.sha256 for file in dataset.manifest.files]
        key = content_hash([teacher.content_sha256, rows, student.init.rows, student.max_length])
        return cls(Path(recipe.students) / FOLDER / key[:16])

    @contextmanager
    def in_turn(self, progress: Progress) -> Iterator[None]:
        """One run measures at a time: another one waits, and then finds what this one measured."""
        told = False
        while True:
            with ExitStack() as held:
                try:
                    held.enter_context(sole_writer(self.folder, StudentBusy, keep_lock=False))
                except StudentBusy as busy:
                    if not told:
                        progress(f"Waiting for {busy.holder}, which measures the same teacher", 0, 1)
                        told = True
                else:
                    yield
                    return
            time.sleep(_LOOK_EVERY)

    @property
    def widths(self) -> Path:
        """The file of what neurons, heads and channels do."""
        return self.folder / _WIDTHS

    def read(self) -> Known:
        """What is known; a file that is damaged counts for nothing."""
        try:
            return Known.model_validate_json((self.folder / _LAYERS).read_bytes())
        except (FileNotFoundError, ValidationError):
            return Known()

    def add(self, **known: object) -> None:
        """Write something more that is known."""
        more = self.read().model_copy(update=known)
        write_atomically(self.folder / _LAYERS, more.model_dump_json(indent=1).encode() + b"\n")
