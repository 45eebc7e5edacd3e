"""Run the rounds of on-policy distillation (GKD, Agarwal et al., arXiv 2306.13649).

    run_rounds(recipe, start, labelled, RoundSteps(score, train), progress)

A round has three steps, and each is durable when it is done: the student of the round before writes to prompts of the
training split (student/rollouts.py), the teacher scores these tokens with the labelling engine (a version of
<dataset>-rollouts), and the student learns from the scores, mixed with rows of the teacher's own dataset. A step that is
done is not done again, so an interrupted run goes on, and more rounds can be added to a finished student.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.dataset.store import Dataset, open_dataset
from stillhouse.models.files import ModelFiles
from stillhouse.processes.ranks import first_process_first, is_first
from stillhouse.progress import Progress, silent
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.records import content_hash
from stillhouse.stages.rounds.health import StudentCollapsed, measure_round, refuse_collapsed, written_of
from stillhouse.stages.rounds.prompts import newest_prompts_of_round, prompts_of_round
from stillhouse.stages.rounds.recipes import (
    on_policy_of,
    round_folder,
    scoring_recipe,
    student_of_round,
    training_recipe,
)
from stillhouse.stages.rounds.record import RoundRecord, read_record
from stillhouse.stages.rounds.server import write_rollouts_with_server
from stillhouse.storage.location import location
from stillhouse.student.finished.folder import StudentResult
from stillhouse.student.finished.rounds import RoundFigures, RoundSeconds, Written
from stillhouse.student.rollouts import FILE, write_rollouts
from stillhouse.teachers.live import load_teacher

if TYPE_CHECKING:
    from stillhouse.models.load import LanguageModel

_LOG = logging.getLogger(__name__)

Score = Callable[[Recipe, Progress], Dataset]
Train = Callable[[Recipe, StudentSettings, Dataset, Progress], StudentResult]


@dataclass(frozen=True)
class RoundResult:
    """A finished round."""

    number: int  # from 1
    scored: Dataset
    record: RoundRecord
    student: StudentResult
    seconds: RoundSeconds | None = None  # None: an earlier run did a part of it


def _run_as_it_is(number: int, run: Callable[[], RoundResult]) -> RoundResult:
    return run()


def log_last_round(rounds: tuple[RoundFigures, ...]) -> None:
    """Log what is known of the last round."""
    _LOG.info("%s", rounds[-1])


@dataclass(frozen=True)
class RoundSteps:
    """What a round calls: `score` labels a recipe in score mode, `train` trains the student of a round's recipe.

    `wrap` is called with the number of each round and a function that runs it; a flow makes a run of its own of it.
    `report` is called after each round with the figures of all rounds so far.
    """

    score: Score
    train: Train
    wrap: Callable[[int, Callable[[], RoundResult]], RoundResult] = _run_as_it_is
    report: Callable[[tuple[RoundFigures, ...]], None] = log_last_round


def run_rounds(
    recipe: Recipe, start: Path, labelled: Dataset, steps: RoundSteps, progress: Progress = silent
) -> list[RoundResult]:
    """Run all rounds that are not finished; return every round.

    Args:
        recipe: the recipe, with `on_policy`.
        start: folder of the student that writes in the first round.
        labelled: the teacher's own dataset.
        steps: what scores and what trains.
        progress: called with the activity, the items done and the total.
    """
    settings = on_policy_of(recipe)
    finished: list[RoundResult] = []
    writer = start
    for number in range(1, settings.rounds + 1):
        first = finished[0].record.health.written if finished else None
        run = partial(_run_round, recipe, number, writer, labelled, steps, progress, first)
        try:
            finished.append(steps.wrap(number, run))
        except StudentCollapsed as collapse:
            _LOG.warning(
                "%s. The rounds end here, and the best student before is kept. To go on, set a lower "
                "on_policy.train.learning_rate or a higher on_policy.mix.",
                collapse,
            )
            return finished[:-1] or finished
        if is_first():
            steps.report(figures_of(finished, best_round(finished)))
        writer = Path(finished[-1].student.folder)
        if settings.patience is not None and _rounds_since_best(finished) >= settings.patience:
            break
    return finished


def _run_round(
    recipe: Recipe,
    number: int,
    writer: Path,
    labelled: Dataset,
    steps: RoundSteps,
    progress: Progress,
    first: Written | None,
) -> RoundResult:
    began = time.monotonic()
    with first_process_first():  # the others find what it has scored
        scored = _scored_rollouts(recipe, number, writer, labelled, steps.score, progress, first)
    own = training_recipe(recipe, number, writer, scored.dataset, labelled)
    student = steps.train(own, student_of_round(own), labelled, progress)
    if is_first():  # a copy of the student that wrote, which nothing needs any more
        shutil.rmtree(round_folder(recipe, number) / "untrained", ignore_errors=True)
    seconds = None
    if scored.seconds is not None and student.trained:
        writing, scoring = scored.seconds
        learning = student.card.seconds
        rest = time.monotonic() - began - writing - scoring - learning
        seconds = RoundSeconds(writing, scoring, learning, max(0.0, rest))
    return RoundResult(number, scored.dataset, scored.record, student, seconds)


def _rounds_since_best(rounds: list[RoundResult]) -> int:
    return rounds[-1].number - best_round(rounds).number


def best_round(rounds: list[RoundResult]) -> RoundResult:
    """Return the round with the lowest held-out KL; of equal ones, the last."""
    return min(reversed(rounds), key=lambda one: held_out_kl(one.student))


def figures_of(rounds: list[RoundResult], best: RoundResult) -> tuple[RoundFigures, ...]:
    """Return what the card of the kept student says of all rounds."""
    return tuple(
        RoundFigures(
            number=one.number,
            dataset=one.record.dataset,
            health=one.record.health,
            held_out_kl=kl if (kl := held_out_kl(one.student)) < float("inf") else None,
            kept=one is best,
            seconds=one.seconds,
        )
        for one in rounds
    )


def held_out_kl(student: StudentResult) -> float:
    """Return the forward KL on held-out rows, in nats per token; infinite if it was not measured."""
    held_out = student.card.held_out
    return float("inf") if held_out is None or held_out.eval_kl is None else held_out.eval_kl


@dataclass(frozen=True)
class _Scored:
    """The scored rollouts of a round."""

    dataset: Dataset
    record: RoundRecord
    seconds: tuple[float, float] | None = None  # of writing and of scoring; None: an earlier run did both


def _load(files: ModelFiles, *, trust_remote_code: bool) -> LanguageModel:
    from stillhouse.models.load import load_language_model

    return load_language_model(files.folder, trust_remote_code=trust_remote_code)


def _scored_rollouts(
    recipe: Recipe,
    number: int,
    writer: Path,
    labelled: Dataset,
    score: Score,
    progress: Progress,
    first: Written | None,
) -> _Scored:
    """Return the version with a round's scored rollouts, after writing and scoring what is missing.

    Raises:
        StudentCollapsed: what the student writes is broken, unlike that of the `first` round; nothing was scored.
    """
    settings = on_policy_of(recipe)
    files = ModelFiles("the student", writer)
    shaping = settings.model_dump(include={"prompts", "samples", "sampling", "batch_size", "writer", "teacher_share"})
    shaping["prompts_from"] = settings.prompts_from
    key = content_hash([files.content_sha256, number, recipe.seed, shaping])
    folder = round_folder(recipe, number)
    own = folder / f"rollouts-{key[:12]}"
    scoring = scoring_recipe(recipe, own / FILE, files.content_sha256, labelled)
    record = read_record(folder, key)
    if record is not None:
        return _Scored(open_dataset(location(scoring.dataset.root) / scoring.dataset.name, record.version), record)
    for other in folder.glob("rollouts-*"):  # of another student, which did not finish this round
        if other != own:
            shutil.rmtree(other)
    assert recipe.student is not None
    load = cache(partial(_load, files, trust_remote_code=recipe.student.trust_remote_code))
    if settings.prompts_from == "newest":
        prompts = newest_prompts_of_round(recipe, number, own)
    else:
        prompts = prompts_of_round(labelled, recipe.seed, number, settings.prompts)
    began = time.monotonic()
    if settings.writer.kind == "vllm":
        file = write_rollouts_with_server(recipe, files, prompts, own, progress)
    else:
        seed = [recipe.seed, number]
        teacher = partial(load_teacher, recipe) if settings.teacher_share > 0 else None
        load()  # takes no part in the time of writing
        began = time.monotonic()
        file = write_rollouts(files, prompts, settings, seed, own, progress, load=load, load_teacher=teacher)
    written_at = time.monotonic()
    written = written_of(file)
    refuse_collapsed(number, written, first or written)
    scoring_from = time.monotonic()
    scored = score(scoring, progress)
    seconds = written_at - began, time.monotonic() - scoring_from
    record = RoundRecord(
        key=key,
        student_sha256=files.content_sha256,
        dataset=scored.manifest.label,
        version=scored.manifest.version,
        health=measure_round(recipe, files, load, scored, labelled, written),
    )
    record.write(folder)
    return _Scored(scored, record, seconds)
