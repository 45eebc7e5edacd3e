"""A cache on disk of a teacher's importance measurements: another student of the same teacher and rows reuses them.

    data/students/.importance/<key>/layers.json      the importance of each layer, by each method used
                                    widths.npz       the activation statistics of each neuron, head and channel

The key hashes the content of the teacher and of the rows. Measurements are written after every step, so that an interrupted
run resumes where it stopped. Students of a sweep that train in parallel share the cache; one of them measures at a time.
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
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.records import content_hash
from stillhouse.storage.durable import write_atomically, write_lock
from stillhouse.student.start.importance import Removal, Scores

FOLDER = ".importance"
_POLL_SECONDS = 0.2  # seconds between attempts to lock the cache while another run measures
_LAYERS, _WIDTHS = "layers.json", "widths.npz"


class LayerMeasurements(BaseModel):
    """The measurements of layers; see importance.py for the units."""

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
        """Return the store of a student's teacher and rows."""
        rows = [file.sha256 for file in dataset.manifest.files]
        key = content_hash([teacher.content_sha256, rows, student.init.rows, student.max_length])
        return cls(Path(recipe.students) / FOLDER / key[:16])

    @contextmanager
    def lock(self, progress: Progress) -> Iterator[None]:
        """Hold the store's lock, so that one run measures at a time; a run that waited finds the other's measurements."""
        reported = False
        while True:
            with ExitStack() as held:
                try:
                    held.enter_context(write_lock(self.folder, StudentBusy, keep_lock=False))
                except StudentBusy as busy:
                    if not reported:
                        progress(f"Waiting for {busy.holder}, which measures the same teacher", 0, 1)
                        reported = True
                else:
                    yield
                    return
            time.sleep(_POLL_SECONDS)

    @property
    def widths(self) -> Path:
        """The file of the activation statistics."""
        return self.folder / _WIDTHS

    def read(self) -> LayerMeasurements:
        """Return the measurements so far; a damaged file counts as empty."""
        try:
            return LayerMeasurements.model_validate_json((self.folder / _LAYERS).read_bytes())
        except (FileNotFoundError, ValidationError):
            return LayerMeasurements()

    def add(self, **known: object) -> None:
        """Add measurements and write all of them."""
        more = self.read().model_copy(update=known)
        write_atomically(self.folder / _LAYERS, more.model_dump_json(indent=1).encode() + b"\n")
