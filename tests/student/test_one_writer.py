"""A student, and a teacher that is fine-tuned, has one writer: a second run says who is at work, and touches nothing."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.config import Recipe
from pipeline.dataset.store import Dataset
from pipeline.errors import StudentBusy
from pipeline.student.folder import StudentFolder, student_folder
from pipeline.student.train import distill, prepare_untrained
from pipeline.student_settings import StudentSettings

Labelled = tuple[Recipe, StudentSettings, Dataset]
HOLD = """
import sys
from pathlib import Path
from pipeline.student.folder import StudentFolder
with StudentFolder(Path(sys.argv[1]), sys.argv[2], "another key").writer():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(place: StudentFolder) -> Iterator[subprocess.Popen[str]]:
    """Another process holds this variant, for a student of another key."""
    command = [sys.executable, "-c", HOLD, str(place.base), place.variant]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_run_says_who_trains_and_leaves_its_checkpoints(labelled: Labelled) -> None:
    recipe, student, dataset = labelled
    place = student_folder(recipe, student, student.mode, dataset)
    with held_elsewhere(place) as process:
        theirs = place.base / f".work-{place.variant}-0123456789ab" / "checkpoint-1"
        theirs.mkdir(parents=True)
        with pytest.raises(StudentBusy, match=rf"is being trained by another run \(.*{process.pid}") as told:
            distill(recipe, student, dataset)
        assert told.value.exit_status == 1
        assert theirs.is_dir()
        assert place.finished() is None
    distill(recipe, student, dataset)  # a run that was killed holds nothing
    assert place.finished() is not None


def test_a_student_that_is_there_is_told_of_while_another_is_trained(labelled: Labelled) -> None:
    recipe, student, dataset = labelled
    card = distill(recipe, student, dataset)
    with held_elsewhere(student_folder(recipe, student, student.mode, dataset)):
        assert distill(recipe, student, dataset) == card


def test_the_untrained_student_is_waited_for(labelled: Labelled) -> None:
    recipe, student, _ = labelled
    place = student_folder(recipe, student, "untrained", None)
    made: list[StudentFolder] = []
    with held_elsewhere(place):
        thread = threading.Thread(target=lambda: made.append(prepare_untrained(recipe, student)))
        thread.start()
        thread.join(timeout=1.5)
        assert thread.is_alive()
    thread.join(timeout=60)
    assert made == [place]
    assert place.finished() is not None


def test_variants_of_one_recipe_are_trained_side_by_side(labelled: Labelled, tmp_path: Path) -> None:
    recipe, student, dataset = labelled
    white = student_folder(recipe, student, "white-box", dataset)
    black = student_folder(recipe, student.model_copy(update={"mode": "black-box"}), "black-box", dataset)
    with held_elsewhere(black), white.writer():
        assert white.base == black.base
