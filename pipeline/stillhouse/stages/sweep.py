"""Train the students of a sweep: one after another in this process, or several in parallel.

    train_points(trainings, at_a_time, distill_stage, progress)

In parallel, a separate process trains each student (`stillhouse distill` with the point's recipe, processes/children.py)
and ends when this process does. The CPU threads are divided among the processes, and so are the GPUs if there are several.
If a student fails, the students that are being trained are finished, and no further one is started. Finished students are
not trained again, so a sweep that was stopped resumes, and adding a size trains only that size.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace

from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError, StillhouseError, TrainingError
from stillhouse.processes.children import RECIPE, LogLine, log_to_standard_error, run_command
from stillhouse.processes.supervised import SupervisedProcess
from stillhouse.progress import Progress
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.recipe.sweep_points import Point
from stillhouse.student.finished.folder import StudentResult, student_folder

TrainStudent = Callable[[Recipe, StudentSettings, Dataset, Progress], StudentResult]


@dataclass(frozen=True)
class PointTraining:
    """A student of a sweep and its dataset; the point's recipe names that version of the dataset."""

    point: Point
    dataset: Dataset


def refuse_same_students(trainings: Sequence[PointTraining]) -> None:
    """Refuse to train one student twice under two names.

    Raises:
        RecipeError: two students have the same key, which covers their settings, their start and their rows.
    """
    labels: dict[str, str] = {}
    for one in trainings:
        point = one.point
        key = student_folder(point.recipe, point.student, point.student.mode, one.dataset).key
        if key in labels:
            raise RecipeError(
                f"`{labels[key]}` and `{point.label}` are the same student",
                setting="sweep",
                fix="remove one of the two values",
            )
        labels[key] = point.label


def train_points(
    trainings: Sequence[PointTraining], at_a_time: int, train: TrainStudent, progress: Progress
) -> list[StudentResult]:
    """Train the students that are not finished.

    Args:
        trainings: the students, in the order in which they are started.
        at_a_time: number of students trained in parallel, each in a separate process if more than 1.
        train: trains a student in this process.
        progress: called with each student's progress.

    Returns:
        The students, in the order of `trainings`.

    Raises:
        StillhouseError: the first student that failed, in that order; its message names it.
    """
    if at_a_time == 1:
        return [_train_in_this_process(one, train, progress) for one in trainings]
    children = ParallelChildren(at_a_time)
    pool = ThreadPoolExecutor(at_a_time)
    try:
        futures = [pool.submit(train_in_child, one, children, log_to_standard_error, progress) for one in trainings]
        wait(futures, return_when=FIRST_EXCEPTION)
        pool.shutdown(cancel_futures=True)  # waits for the students that were started
    except BaseException:
        children.stop()
        pool.shutdown(cancel_futures=True)
        raise
    failed = next((one.exception() for one in futures if not one.cancelled() and one.exception()), None)
    if failed is not None:
        raise failed
    return [one.result() for one in futures]


def _train_in_this_process(training: PointTraining, train: TrainStudent, progress: Progress) -> StudentResult:
    point = training.point
    with naming_student(point):
        result = train(point.recipe, point.student, training.dataset, _progress_of(point, progress))
    return replace(result, label=point.label)


def train_in_child(
    training: PointTraining, children: ParallelChildren, log: LogLine, progress: Progress
) -> StudentResult:
    """Train one student in a separate process unless it is finished; called in several threads.

    Args:
        training: the student.
        children: the processes that run in parallel.
        log: called with the lines of the process's log.
        progress: called with the student's progress.

    Raises:
        StillhouseError: the error that the process reported.
        TrainingError: the process failed without reporting an error, or was stopped.
    """
    point, mode = training.point, training.point.student.mode
    place = student_folder(point.recipe, point.student, mode, training.dataset)
    card = place.finished_card()
    if card is not None:
        return StudentResult(place.with_current_key(card), str(place.path), trained=False, label=point.label)
    is_trained = place.trained_card() is not None  # only its quantised copy is missing
    command = [sys.executable, "-m", "stillhouse", "distill", RECIPE, "--only", mode, "--no-flow"]
    with children.slot() as number, naming_student(point), place.lock():
        run_command(
            point.recipe,
            place.work / "launch",
            command,
            log,
            _progress_of(point, progress),
            what="the training",
            environment=children.environment(number),
            on_start=children.started,
        )
        card = place.finished_card()
        if card is None:
            raise TrainingError(
                f"the training ended without an error, but {place.path} does not exist",
                fix="check whether it was removed meanwhile",
            )
    return StudentResult(card, str(place.path), trained=not is_trained, label=point.label)


class ParallelChildren:
    """The processes that train in parallel: assigns threads and GPUs to each, and stops all of them."""

    def __init__(self, at_a_time: int) -> None:
        self._at_a_time = at_a_time
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(at_a_time):
            self._slots.put(number)
        self._lock = threading.Lock()
        self._running: list[SupervisedProcess] = []
        self._stopped = False

    @contextmanager
    def slot(self) -> Iterator[int]:
        """Wait for a free slot, hold it for the block, and yield its number."""
        number = self._slots.get()
        try:
            yield number
        finally:
            self._slots.put(number)

    def environment(self, number: int) -> dict[str, str]:
        """Return the environment variables of a slot: its number of threads, and its GPU if there are several."""
        variables = {"OMP_NUM_THREADS": str(max(1, _threads() // self._at_a_time))}
        gpus = _gpus()
        if len(gpus) > 1:
            variables["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        return variables

    def started(self, process: SupervisedProcess) -> None:
        """Register a started process; end it at once if `stop` was called."""
        with self._lock:
            self._running.append(process)
            if self._stopped:
                process.terminate()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def stop(self) -> None:
        """Terminate every process, and each one that is started later."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _threads() -> int:
    """Return the number of threads that this process computes with."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """Return the GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(torch.cuda.device_count())] if visible is None else visible.split(",")


@contextmanager
def naming_student(point: Point) -> Iterator[None]:
    """Prefix the messages of errors in the block with the student of the sweep."""
    try:
        yield
    except StillhouseError as error:
        raise error.within(f"sweep, {point.label}") from error


def _progress_of(point: Point, progress: Progress) -> Progress:
    """Return a progress function that adds the student to the activity."""
    return lambda activity, done, total: progress(f"{activity}, {point.label}", done, total)
