"""The layout of data/students/<recipe>/: finished students, the untrained one, and work in progress.

    untrained/           the student before its first step: where all students start, and a baseline of the report
    white-box/           a finished student: model, tokenizer, README.md, recipe.yaml; student.json is written last
      int8/              its quantised copy, if `student.quantize` is set: a model's folder too
    black-box/           likewise
    on-policy/           likewise: the student of the best round (`on_policy`)
    rounds/round-001/    what a round has made: rollouts, the record of their scores, and its student
    gold/                likewise; data/teachers/<name>/gold is a teacher that was fine-tuned first (`teacher.finetune`)
    .work-white-box-3f…/ checkpoints of a training that has not finished; the name ends with the key of its inputs

One run at a time trains the students of a recipe, or fine-tunes a teacher: `StudentFolder.lock` is the lock.

The key hashes everything that determines a student, including the code of a loss from another package (plugins.py): a
finished student is recognised, and a checkpoint of other inputs is never resumed. `student.quantize` is not part of it,
because the copy is made of a finished student and can be added later. Nor is `student.launch`: with the same number of rows
per step, several processes train the same student as one.
This module does not need torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stillhouse.dataset.store import Dataset, dataset_folder, open_dataset
from stillhouse.errors import DatasetMissing, StudentBusy
from stillhouse.models.find import has_local_files, init_model_files, teacher_files
from stillhouse.plugins import LOSSES, plugin_code_key
from stillhouse.processes.ranks import is_first, is_launched_for
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import DataSettings, StudentSettings
from stillhouse.records import content_hash
from stillhouse.storage.durable import fsync_folder, write_atomically, write_lock
from stillhouse.storage.location import location
from stillhouse.student.finished.rounds import RoundFigures
from stillhouse.student.finished.user_files import move_user_files, refuse_to_replace

CARD = "student.json"
INT8 = "int8"
Variant = Literal["untrained", "white-box", "black-box", "gold", "on-policy"]


class Step(BaseModel):
    """One line of a training's log; what was not measured at this step is None."""

    model_config = ConfigDict(frozen=True)

    step: int
    loss: float | None = None
    eval_loss: float | None = None
    eval_kl: float | None = None  # forward KL from the teacher's labels, nats per held-out token
    eval_cross_entropy: float | None = None  # of the teacher's text, nats per held-out token
    learning_rate: float | None = None


class Int8Copy(BaseModel):
    """The quantised copy of a student."""

    model_config = ConfigDict(frozen=True)

    parameters: int  # number of the student's parameters in 8 bits
    megabytes: float  # of its weights on disk, 10^6 bytes
    torchao: str  # the version that wrote it


class StudentCard(BaseModel):
    """student.json: a student's description and origin."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    variant: Variant
    is_teacher: bool = False  # made by teacher.finetune: it labels
    key: str
    names_weights_by: Literal["samples", "content"] = "samples"  # in the key; "samples" is from an earlier release
    dataset: str  # name/v001
    parameters: int
    trainable_parameters: int = 0  # fewer with student.lora
    megabytes: float  # of its weights on disk, 10^6 bytes
    steps: int
    kept_step: int | None  # the step of the student that early stopping kept
    training: dict[str, Any]  # the training arguments that shape a training most
    rows: int
    rows_too_long: int
    rows_empty: int = 0  # without a completion token, left out too
    rows_cut_off: int = 0  # of `rows`, text that the teacher did not end: no end token was learnt from them
    rows_unrendered: int = 0  # with a prompt that the student's chat template refuses; left out too
    seconds: float
    created_at: str  # ISO 8601, UTC
    versions: dict[str, str]
    log: tuple[Step, ...]
    int8: Int8Copy | None = None
    rounds: tuple[RoundFigures, ...] = ()  # of an on-policy student

    @property
    def held_out(self) -> Step | None:
        """The last measurement on held-out rows of the student that was kept."""
        measured = [step for step in self.log if step.eval_loss is not None]
        return next((step for step in measured if step.step == self.kept_step), measured[-1] if measured else None)


@dataclass(frozen=True)
class StudentResult:
    """One student, and whether it was trained now or existed already."""

    card: StudentCard
    folder: str
    trained: bool
    label: str | None = None  # "16 layers", for a student of a sweep
    along: StudentResult | None = None  # of a teacher: the student that was trained in the same steps


@dataclass(frozen=True)
class StudentFolder:
    """The folder of one student of a recipe."""

    base: Path
    variant: Variant
    key: str
    wants_int8: bool = False
    earlier_key: str | None = None  # the key in an earlier release, which hashed samples of weight files

    @property
    def path(self) -> Path:
        return self.base / self.variant

    @property
    def work(self) -> Path:
        return self.base / f".work-{self.variant}-{self.key[:12]}"

    @property
    def int8(self) -> Path:
        return self.path / INT8

    def trained_card(self) -> StudentCard | None:
        """Return the card if this student, with the same key, has been trained; else None.

        Raises:
            UsageError: the student's folder holds something else.
        """
        refuse_to_replace(self.path, CARD)
        card = read_card(self.path)
        if card is None or card.key == self.key:
            return card
        return card if card.names_weights_by == "samples" and card.key == self.earlier_key else None

    def finished_card(self) -> StudentCard | None:
        """Return the card if this student is complete, including its int8 copy if one is requested; else None."""
        card = self.trained_card()
        return None if card is not None and card.int8 is None and self.wants_int8 else card

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the recipe's students. A run that starts other processes to train holds it for them.

        Raises:
            StudentBusy: another run is training the recipe's students; the message names that run.
        """
        if is_launched_for(self.base) or not is_first():
            yield
            return
        with write_lock(self.base, StudentBusy, keep_lock=False):
            yield

    def with_current_key(self, card: StudentCard) -> StudentCard:
        """Return the card with the current key, and write it, if it has that of an earlier release.

        Later edits to the weights of the student's start then give another student, even if no sample of them changes.
        """
        if card.key == self.key or not is_first():
            return card
        anew = card.model_copy(update={"key": self.key, "names_weights_by": "content"})
        with suppress(StudentBusy), self.lock():
            write_atomically(self.path / CARD, anew.model_dump_json(indent=2).encode() + b"\n")
        return anew

    def resume_earlier_work(self) -> None:
        """Adopt the checkpoints that an earlier release left under its key, if there are none under the current one."""
        if self.earlier_key is not None and not self.work.exists():
            earlier = replace(self, key=self.earlier_key).work
            if earlier.is_dir():
                earlier.rename(self.work)

    def publish(self, made: Path, card: StudentCard) -> None:
        """Move the finished student from `made` to its folder, the card included, and remove older work of this variant."""
        write_atomically(made / CARD, card.model_dump_json(indent=2).encode() + b"\n")
        retired = self.base / f".old-{self.variant}"
        shutil.rmtree(retired, ignore_errors=True)
        if self.path.exists():
            self.path.rename(retired)
        made.rename(self.path)
        if retired.is_dir():
            move_user_files(retired, self.path)
        fsync_folder(self.base)
        for leftover in [retired, *self.base.glob(f".work-{self.variant}-*")]:
            shutil.rmtree(leftover, ignore_errors=True)

    def publish_int8(self, made: Path) -> None:
        """Move the quantised copy of an existing student from `made` to its folder; `write_card` makes it valid."""
        shutil.rmtree(self.int8, ignore_errors=True)
        made.rename(self.int8)
        fsync_folder(self.path)

    def write_card(self, card: StudentCard) -> None:
        """Write the card of an existing student again; everything that it describes must be on disk already."""
        write_atomically(self.path / CARD, card.model_dump_json(indent=2).encode() + b"\n")
        shutil.rmtree(self.work, ignore_errors=True)


def weight_megabytes(folder: Path) -> float:
    """Return the size of a model's weights on disk, 10^6 bytes."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


def student_folder(
    recipe: Recipe,
    student: StudentSettings,
    variant: Variant,
    dataset: Dataset | None,
    labelled: Dataset | None = None,
) -> StudentFolder:
    """Return the folder of one student; its key covers the dataset's content, the start, the loss and the training.

    Args:
        recipe: the recipe, which names the teacher, the dataset and the folder.
        student: the student's settings.
        variant: which student.
        dataset: the rows that this variant learns from: the references for a gold one and for one beside whom the
            teacher learns; None for the untrained one.
        labelled: the teacher's completions, if the start is made with them; None: see `start_dataset`.

    Raises:
        DatasetMissing: the start is made with the teacher's completions, and they have not been labelled.
    """
    if variant == "on-policy":
        before = student_folder(recipe, student, student.mode, dataset, labelled)
        settings = recipe.on_policy.model_dump() if recipe.on_policy else None
        key = content_hash({"before": before.key, "on_policy": settings})
        return replace(before, variant=variant, key=key, earlier_key=None)
    start_data = start_dataset(recipe, student, labelled or (None if recipe.learns_references(variant) else dataset))
    if dataset is None:
        rows = []
    elif recipe.learns_references(variant):  # the plan hashes each row's content, and stays if they are written again
        rows = [dataset.manifest.plan_sha256]
    else:
        rows = [file.sha256 for file in dataset.manifest.files]
        if student.data is not None:
            learnt = datasets_of(recipe, student, dataset)
            rows += [file.sha256 for _, one in learnt for file in one.manifest.files]
    return folder_for(recipe, student, variant, rows, start_data)


def datasets_of(recipe: Recipe, student: StudentSettings, dataset: Dataset) -> list[tuple[DataSettings, Dataset]]:
    """Return the datasets whose training rows a student learns, with their settings.

    Args:
        recipe: the recipe, which names the datasets' folder.
        student: the student's settings.
        dataset: the dataset of the recipe, or the references of a gold student.

    Raises:
        DatasetMissing: one of `student.data` does not exist.
    """
    if student.data is None or student.mode == "gold":
        return [(DataSettings(dataset=dataset.manifest.name), dataset)]
    root = location(recipe.dataset.root)
    return [(one, open_dataset(root / one.dataset, one.version)) for one in student.data]


def start_dataset(recipe: Recipe, student: StudentSettings, labelled: Dataset | None = None) -> Dataset | None:
    """Return the teacher's completions on which importance is measured and whose tokens are kept, if the start needs them.

    Args:
        recipe: the recipe, which names the dataset.
        student: the student's settings.
        labelled: the dataset, if it is open already.

    Returns:
        None for a start that needs no dataset.

    Raises:
        DatasetMissing: the dataset has not been labelled yet.
    """
    if not student.init.needs_dataset:
        return None
    if labelled is not None:
        return labelled
    try:
        return open_dataset(dataset_folder(recipe.dataset), recipe.dataset.version)
    except DatasetMissing as error:
        raise _needs_dataset(student, error) from None


def _needs_dataset(student: StudentSettings, error: DatasetMissing) -> DatasetMissing:
    """Return the error for a missing dataset: which part of the start needs it, and how to start without one."""
    init = student.init
    if init.vocabulary == "used":
        setting, why, fix = "vocabulary", "it keeps the tokens of the dataset's texts", "set it to 'all'"
    elif init.width is not None:
        setting, why, fix = "width", "widths are ranked by importance on rows of the dataset", "remove it"
    else:
        setting, why = "choose", "layers are measured on rows of the dataset"
        fix = "set it to 'even', or list the layers, such as layers: [0, 1, 2],"
    value: dict[str, Any] = {} if setting == "width" else {"value": getattr(init, setting)}
    return DatasetMissing(
        f"{why}, and {error.problem}",
        setting=f"student.init.{setting}",
        fix=f"{error.fix or 'run `stillhouse label` first'}, or {fix} to start without a dataset",
        **value,
    )


def folder_for(
    recipe: Recipe,
    student: StudentSettings,
    variant: Variant,
    rows: Sequence[str | None],
    start_data: Dataset | None = None,
) -> StudentFolder:
    """Return a student's folder; `rows` are the hashes of its training data, `start_data` is from `start_dataset`."""
    key_settings: dict[str, Any] = {"init": student.init.key_settings, "seed": recipe.seed}
    earlier: dict[str, Any] = {}  # the same entries as in an earlier release
    if start_data is not None:
        key_settings["made_with"] = [file.sha256 for file in start_data.manifest.files]
    own = student.init.model
    if Path(own).is_dir() if own else has_local_files(recipe.teacher):  # a hub model is identified by name and revision
        start = init_model_files(recipe, student)
        key_settings["start"], earlier["start"] = start.content_sha256, start.sampled_sha256
    if variant != "untrained":
        key_settings |= {"student": student.key_settings(variant), "rows": rows}
    if variant == "white-box":
        key_settings |= plugin_code_key(LOSSES, student.loss.kind)
    if variant == "white-box" and recipe.learns_along:
        key_settings["along"] = _along_key(recipe, rows)
    elif (
        variant == "white-box" and student.needs_live_teacher
    ):  # stored labels are in `rows`, these are the model's own
        live, dtype = teacher_files(recipe), recipe.teacher.options.get("dtype")
        key_settings["live"], earlier["live"] = [live.content_sha256, dtype], [live.sampled_sha256, dtype]
    return StudentFolder(
        base=Path(recipe.students) / recipe.name,
        variant=variant,
        key=content_hash(key_settings),
        wants_int8=student.quantize == "int8" and variant == student.mode,
        earlier_key=content_hash(key_settings | earlier) if earlier else None,
    )


def finetuned_folder(recipe: Recipe, rows: Sequence[str | None]) -> StudentFolder:
    """Return the folder of the recipe's fine-tuned teacher; `rows` is the plan of the references that it learns.

    The key of a teacher that learns along with the student covers the student.
    """
    tuning = recipe.finetuning
    assert tuning is not None and tuning.student is not None
    place = folder_for(tuning, tuning.student, "gold", rows)
    if recipe.learns_along:
        assert recipe.student is not None
        both = {"along": folder_for(recipe, recipe.student, "white-box", rows).key}
        return replace(place, key=content_hash(both), earlier_key=None)
    return place


def teacher_along(recipe: Recipe, student: StudentSettings, references: Dataset) -> StudentFolder | None:
    """Return the folder of the teacher that a student's training makes as well; None: it makes the student alone."""
    if not recipe.learns_along or student.mode != "white-box":
        return None
    return finetuned_folder(recipe, [references.manifest.plan_sha256])


def _along_key(recipe: Recipe, rows: Sequence[str | None]) -> dict[str, Any]:
    """Return what determines the teacher beside which a student learns."""
    tuning, settings = recipe.finetuning, recipe.teacher.finetune
    assert tuning is not None and tuning.student is not None and settings is not None
    alone = folder_for(tuning, tuning.student, "gold", rows).key
    return {"teacher": alone, "dtype": recipe.teacher.options.get("dtype"), "student_weight": settings.student_weight}


def read_card(folder: Path) -> StudentCard | None:
    """Read the card of a student's folder; None if it has no finished student."""
    file = folder / CARD
    try:
        return StudentCard.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
