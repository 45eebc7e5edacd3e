"""Distil a T5 into a smaller T5, on words and their pronunciation: `make reproduce-t5`.

    python -m benchmarks.t5              # three seeds, into docs/benchmarks.md and docs/t5.png
    python -m benchmarks.t5 --quick      # one seed and shorter trainings, printed and not written

Stillhouse's commands do all the work and are printed as they run, so an interrupted run resumes where it stopped. Each uses
one core; the two datasets are labelled in parallel, and students are trained two at a time. t5_table.py makes the table.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.commands import Commands
from benchmarks.shared import DOCS, ROOT, write_section
from benchmarks.t5_data import FOLDER, RECIPE, prepare

PLOT = ROOT / "docs/t5.png"
LOGS = FOLDER / "logs"
AT_ONCE = 2
COPIED = "{from: teacher, layers: {encoder: 1, decoder: 1}, choose: even}"
ONE_STUDENT = ("evaluate.baselines=[]", "student.quantize=null")


@dataclass(frozen=True)
class Experiment:
    """The size of the experiment."""

    name: str  # of the teacher, the dataset and the recipes
    seeds: tuple[int, ...]
    wanted_minutes: int
    teacher_steps: int | None = None  # None: as in the recipe
    student_steps: int | None = None

    @property
    def as_text(self) -> tuple[str, ...]:
        """Settings for a dataset of the teacher's generated text, and a black-box student that learns from it."""
        return (f"dataset.name={self.name}-text", "label.mode=generate", "label.soft=null", "student.mode=black-box")

    @property
    def shared(self) -> list[str]:
        """Settings of every command."""
        settings = {"teacher.finetune.name": self.name, "dataset.name": self.name}
        if self.teacher_steps:
            settings |= dict.fromkeys(_spans("teacher.finetune.train"), self.teacher_steps)
        if self.student_steps:
            settings |= dict.fromkeys(_spans("student.train"), self.student_steps)
        return [f"{key}={value}" for key, value in settings.items()]


WHOLE = Experiment("phonemes", (1, 2, 3), wanted_minutes=90)
QUICK = Experiment("phonemes-quick", (1,), wanted_minutes=20, teacher_steps=2600, student_steps=2200)


@dataclass(frozen=True)
class Run:
    """One recipe of the experiment: its students with one seed, and their report."""

    name: str
    kind: str  # "live", "fresh", "text", "copied"
    seed: int
    settings: tuple[str, ...]


def runs(experiment: Experiment) -> Iterator[Run]:
    """Yield the runs, those that take longest first."""
    kinds = {
        "live": ("student.labels=live", *ONE_STUDENT),
        "fresh": (),  # the unchanged recipe: gold and white-box students of one shape
        "text": (*experiment.as_text, *ONE_STUDENT),
        "copied": (f"student.init={COPIED}", "student.mode=gold", *ONE_STUDENT),
    }
    for kind, settings in kinds.items():
        for seed in experiment.seeds:
            name = f"{experiment.name}-{kind}-{seed}"
            yield Run(name, kind, seed, (f"name={name}", f"seed={seed}", *settings))


def main() -> None:
    parser = argparse.ArgumentParser(description="A T5 into a smaller T5, on words and how they are spoken.")
    parser.add_argument("--quick", action="store_true", help="one seed, shorter trainings; nothing in docs/ is changed")
    quick = parser.parse_args().quick
    os.chdir(ROOT)
    experiment = QUICK if quick else WHOLE
    prepare()
    finetuned = _stillhouse("finetune", experiment, [], log=experiment.name)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        each = pool.map(lambda one: _stillhouse("label", experiment, one[1], log=one[0]), _datasets(experiment))
        labelled = sum(each) / AT_ONCE
        each = pool.map(lambda run: _train_and_measure(run, experiment), runs(experiment))
        trained = sum(each) / AT_ONCE

    from benchmarks import t5_table  # lazy import: it needs torch, and this process should stay small

    began = time.monotonic()
    rows = t5_table.read_rows(list(runs(experiment)))
    measured = (time.monotonic() - began) / 60
    text = t5_table.section(experiment, rows, [finetuned, labelled, trained, measured])
    if quick:
        print(f"\n{text}\n")
        return
    t5_table.plot(rows, PLOT)
    write_section("t5", text, DOCS)


def _datasets(experiment: Experiment) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the log's name and the settings of each dataset."""
    yield experiment.name, ()
    yield f"{experiment.name}-text", experiment.as_text


def _train_and_measure(run: Run, experiment: Experiment) -> float:
    """Train and evaluate the students of a run; return the minutes that it took."""
    return sum(_stillhouse(command, experiment, run.settings, log=run.name) for command in ("distill", "evaluate"))


def _stillhouse(command: str, experiment: Experiment, settings: Sequence[str], *, log: str) -> float:
    """Run one command on one core (models this small are slower on two); return its minutes."""
    return Commands(RECIPE, LOGS, cores=1).run(command, [*experiment.shared, *settings], log=log)


def _spans(train: str) -> Iterator[str]:
    """Yield the settings of a shorter training: with all three equal, it is evaluated and saved only at its end."""
    return (f"{train}.{setting}" for setting in ("max_steps", "eval_steps", "save_steps"))


if __name__ == "__main__":
    main()
