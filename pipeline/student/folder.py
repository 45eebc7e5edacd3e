"""What lies in data/students/<recipe>/: finished students, the untrained one, and work in progress.

    untrained/           the student before its first step: where both students start from, and a baseline of the report
    white-box/           a finished student: model, tokenizer, recipe.yaml, and student.json, which is written last
    black-box/           likewise
    .work-white-box-3f…/ checkpoints of a training that has not finished; the name ends with the key of its inputs

The key hashes everything that shapes a student, so a finished one is recognised, and a checkpoint of other inputs is never
resumed. Nothing here needs torch.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import Recipe
from pipeline.dataset.store import Dataset
from pipeline.durable import fsync_folder, write_atomically
from pipeline.model_files import has_files, teacher_files
from pipeline.records import content_hash
from pipeline.student_settings import StudentSettings

CARD = "student.json"
Variant = Literal["untrained", "white-box", "black-box"]


class Step(BaseModel):
    """One line of a training's log; what was not measured at this step is None."""

    model_config = ConfigDict(frozen=True)

    step: int
    loss: float | None = None
    eval_loss: float | None = None
    eval_kl: float | None = None  # forward KL from the teacher's labels, nats a held-out token
    learning_rate: float | None = None


class StudentCard(BaseModel):
    """student.json: what a student is and where it came from."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    variant: Variant
    key: str
    dataset: str  # name/v001
    parameters: int
    trainable_parameters: int = 0  # fewer with student.lora
    steps: int
    rows: int
    rows_too_long: int
    seconds: float
    created_at: str  # ISO 8601, UTC
    versions: dict[str, str]
    log: tuple[Step, ...]


@dataclass(frozen=True)
class StudentFolder:
    """One student of a recipe on disk."""

    base: Path
    variant: Variant
    key: str

    @property
    def path(self) -> Path:
        return self.base / self.variant

    @property
    def work(self) -> Path:
        return self.base / f".work-{self.variant}-{self.key[:12]}"

    def finished(self) -> StudentCard | None:
        """The card, if this very student has been finished."""
        card = read_card(self.path)
        return card if card is not None and card.key == self.key else None

    def publish(self, made: Path, card: StudentCard) -> None:
        """Put the finished student from `made` in its place; its card last. Older work of this variant goes."""
        write_atomically(made / CARD, card.model_dump_json(indent=2).encode() + b"\n")
        retired = self.base / f".old-{self.variant}"
        shutil.rmtree(retired, ignore_errors=True)
        if self.path.exists():
            self.path.rename(retired)
        made.rename(self.path)
        fsync_folder(self.base)
        for leftover in [retired, *self.base.glob(f".work-{self.variant}-*")]:
            shutil.rmtree(leftover, ignore_errors=True)


def student_folder(
    recipe: Recipe, student: StudentSettings, variant: Variant, dataset: Dataset | None
) -> StudentFolder:
    """The place of one student; its key covers the dataset's content, the start, the loss and the training settings."""
    shaping: dict[str, Any] = {"init": student.init.model_dump(), "seed": recipe.seed}
    if student.init.model is None and has_files(recipe.teacher):
        shaping["teacher"] = teacher_files(recipe).content_sha256
    if variant != "untrained":
        settings = student.model_dump(exclude={"loss"} if variant == "black-box" else set())
        shaping |= {
            "student": settings | {"mode": variant},
            "rows": [f.sha256 for f in dataset.manifest.files] if dataset else [],
        }
    return StudentFolder(Path(recipe.students) / recipe.name, variant, content_hash(shaping))


def read_card(folder: Path) -> StudentCard | None:
    """The card of a student's folder, or None where there is no finished student."""
    file = folder / CARD
    try:
        return StudentCard.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
