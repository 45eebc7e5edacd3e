"""Train the students of a sweep: one after another in this process, or several side by side.

    train_points(trainings, at_a_time, distill_stage, progress)

Side by side, each student is trained by a process of its own (`stillhouse distill` with the point's recipe, children.py),
which ends when this one does. The processors are shared out among them, and the GPUs where there are several. When one
fails, those that are being trained are trained to their end, and no further one is begun. A student that is there is not
trained again, so a sweep that was stopped goes on where it was, and a size that is added is all that is trained.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace

from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError, StillhouseError, TrainingError
from stillhouse.processes.children import RECIPE, Tell, follow, to_standard_error
from stillhouse.progress import Progress
from stillhouse.recipe.load import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.recipe.sweep_points import Point
from stillhouse.student.finished.folder import StudentResult, student_folder

Here = Callable[[Recipe, StudentSettings, Dataset, Progress], StudentResult]


@dataclass(frozen=True)
class PointTraining:
    """A student of a sweep, and what it learns from; the point's recipe names that version of the dataset."""

    point: Point
    dataset: Dataset


def refuse_same_students(trainings: Sequence[PointTraining]) -> None:
    """Refuse to train one student twice under two names.

    Raises:
        RecipeError: two of them have the same key, by their settings, their start and their rows.
    """
    labels: dict[str, str] = {}
    for one in trainings:
        point = one.point
        key = student_folder(point.recipe, point.student, point.student.mode, one.dataset).key
        if key in labels:
            raise RecipeError(
                f"sweep: `{labels[key]}` and `{point.label}` are the same student: take one of the two values away"
            )
        labels[key] = point.label


def train_points(
    trainings: Sequence[PointTraining], at_a_time: int, here: Here, progress: Progress
) -> list[StudentResult]:
    """Train the students that are not there yet.

    Args:
        trainings: the students, in the order in which they are begun.
        at_a_time: how many are trained side by side, each in a process of its own if more than 1.
        here: trains one in this process.
        progress: is told how far each is.

    Returns:
        The students, in the order of `trainings`.

    Raises:
        StillhouseError: the first student that failed, in that order; its message names it.
    """
    if at_a_time == 1:
        return [_train_here(one, here, progress) for one in trainings]
    children = Children(at_a_time)
    pool = ThreadPoolExecutor(at_a_time)
    try:
        futures = [pool.submit(train_apart, one, children, to_standard_error, progress) for one in trainings]
        wait(futures, return_when=FIRST_EXCEPTION)
        pool.shutdown(cancel_futures=True)  # those that were begun come to their end
    except BaseException:
        children.stop()
        pool.shutdown(cancel_futures=True)
        raise
    failed = next((one.exception() for one in futures if not one.cancelled() and one.exception()), None)
    if failed is not None:
        raise failed
    return [one.result() for one in futures]


def _train_here(training: PointTraining, here: Here, progress: Progress) -> StudentResult:
    point = training.point
    with told_of(point):
        result = here(point.recipe, point.student, training.dataset, _of(point, progress))
    return replace(result, label=point.label)


def train_apart(training: PointTraining, children: Children, tell: Tell, progress: Progress) -> StudentResult:
    """Train one student in a process of its own, where it is not there yet; called in several threads.

    Args:
        training: the student.
        children: the processes that run side by side.
        tell: called with the lines of the process's log.
        progress: called with its progress.

    Raises:
        StillhouseError: the error of the process, of the same kind.
        TrainingError: the process failed without one, or this is to stop.
    """
    point, mode = training.point, training.point.student.mode
    place = student_folder(point.recipe, point.student, mode, training.dataset)
    card = place.finished_card()
    if card is not None:
        return StudentResult(place.with_current_key(card), str(place.path), trained=False, label=point.label)
    there = place.trained_card() is not None  # all of it but its quantised copy
    command = [sys.executable, "-m", "stillhouse", "distill", RECIPE, "--only", mode, "--no-flow"]
    with children.place() as number, told_of(point), place.lock():
        follow(
            point.recipe,
            place.work / "launch",
            command,
            tell,
            _of(point, progress),
            what="the training",
            environment=children.environment(number),
            on_start=children.started,
        )
        card = place.finished_card()
        if card is None:
            raise TrainingError(f"the training ended well, and {place.path} is not there: was it removed meanwhile?")
    return StudentResult(card, str(place.path), trained=not there, label=point.label)


class Children:
    """The processes that train side by side: what each may use, and an end for all of them."""

    def __init__(self, at_a_time: int) -> None:
        self._at_a_time = at_a_time
        self._places: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(at_a_time):
            self._places.put(number)
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopped = False

    @contextmanager
    def place(self) -> Iterator[int]:
        """Wait for one of the places, and hold it for the block."""
        number = self._places.get()
        try:
            yield number
        finally:
            self._places.put(number)

    def environment(self, number: int) -> dict[str, str]:
        """The share of this place: its threads, and its GPU where there is more than one."""
        variables = {"OMP_NUM_THREADS": str(max(1, _threads() // self._at_a_time))}
        gpus = _gpus()
        if len(gpus) > 1:
            variables["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        return variables

    def started(self, process: subprocess.Popen[bytes]) -> None:
        """Count a process among them; it ends at once where they are to stop."""
        with self._lock:
            self._running.append(process)
            if self._stopped:
                process.terminate()

    @property
    def stopped(self) -> bool:
        """Whether they were asked to end."""
        return self._stopped

    def stop(self) -> None:
        """Ask every process to end, and each that is started from now on."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _threads() -> int:
    """How many threads this process would compute with."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(torch.cuda.device_count())] if named is None else named.split(",")


@contextmanager
def told_of(point: Point) -> Iterator[None]:
    """What is refused within names the student of the sweep that it is about."""
    try:
        yield
    except StillhouseError as error:
        raise error.within(f"sweep, {point.label}") from error


def _of(point: Point, progress: Progress) -> Progress:
    """Progress that names the student."""
    return lambda activity, done, total: progress(f"{activity}, {point.label}", done, total)
