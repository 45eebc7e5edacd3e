"""The table and the plot of sections.py, from what each model got right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.shared import table
from stillhouse.evaluation.measures.bootstrap import mean_per_prompt

TEACHER, GOLD, WHITE_BOX = "teacher", "gold", "white-box"
WHOLE = ", whole vocabulary"
WANTED_GAIN, WANTED_AT = 7, ("300", "1000")  # points of white-box above gold, and where
CURVES = {"TF-IDF on the references": "o--", GOLD: "s-", WHITE_BOX: "D-", TEACHER: "*-"}
PRICE = 0.05  # US dollars for a core-hour, to compare


def section(figures: Mapping[str, Any]) -> str:
    """Return the tables and the facts of their measurement as Markdown."""
    counts = sorted(figures, key=int)
    rows = list(dict.fromkeys(name for count in counts for name in figures[count]["models"]))
    cells = [[name, *(_cell(figures[count], name) for count in counts)] for name in rows]
    parts = [
        _about(figures, counts),
        table(["sections right, %", *(f"{int(count):,} references" for count in counts)], cells),
        *[_gains(figures[count], int(count)) for count in counts if WHITE_BOX in figures[count]["models"]],
        _costs(figures, counts),
        *dict.fromkeys(figures[count]["measured"] for count in counts),
    ]
    return "\n\n".join(parts)


def by_prompt(model: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Return the share of seeds whose answer is right: (prompts,)."""
    return np.array([[int(bit) for bit in seed] for seed in model["right"]], dtype=np.float64).mean(axis=0)


def percent(values: npt.NDArray[np.float64]) -> str:
    """Format the mean, in %, with its interval over prompts, as in `63.7 [60.2, 67.0]`."""
    interval = mean_per_prompt(values.tolist())
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _cell(figures: Mapping[str, Any], name: str) -> str:
    model = figures["models"].get(name)
    return "–" if model is None else percent(by_prompt(model))


def _about(figures: Mapping[str, Any], counts: Sequence[str]) -> str:
    first = figures[counts[0]]["models"]
    held_out = len(first[TEACHER]["right"][0])
    seeds = max(len(model["right"]) for model in first.values())
    total = first[TEACHER]["parameters"]
    shares = {name: first[name]["parameters"] / total for name in (WHITE_BOX, WHITE_BOX + WHOLE) if name in first}
    sizes = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return (
        f"{held_out:,} packages are held out, greedy answers, the mean of {seeds} seeds of each student, 95 % bootstrap "
        f"intervals over packages. Parameters of the teacher's: {sizes}; gold students have the same shapes, starts and "
        "steps."
    )


def _gains(figures: Mapping[str, Any], count: int) -> str:
    models = figures["models"]
    lines = []
    for ending in ("", WHOLE):
        if WHITE_BOX + ending not in models:
            continue
        student, gold, teacher = (by_prompt(models[name]) for name in (WHITE_BOX + ending, GOLD + ending, TEACHER))
        wanted = f" (wanted: {WANTED_GAIN} points, an interval above 0)" if str(count) in WANTED_AT else ""
        lines.append(
            f"{count:,} references, white-box{ending}: {percent(student - gold)} points above gold{wanted}; "
            f"{100 * student.mean() / teacher.mean():.1f} % of the teacher's right answers (wanted: "
            f"{95 if not ending else 98})."
        )
    return " ".join(lines)


def _costs(figures: Mapping[str, Any], counts: Sequence[str]) -> str:
    """Return the costs and the number of requests after which a student has paid for itself."""
    rows = []
    for count in counts:
        minutes, speeds = figures[count]["minutes"], figures[count]["speeds"]
        made = minutes["label"] + minutes["quarter"] / 2  # of two students, gold and white-box
        teacher, student = (1e6 / speeds[name] / 3600 for name in (TEACHER, WHITE_BOX))  # core-hours a million
        even = made / 60 * 2 / (teacher - student) * 1e6 if teacher > student else float("inf")
        rows.append(
            [
                f"{int(count):,}",
                f"{minutes['finetune']:.1f}",
                f"{minutes['label']:.1f}",
                f"{minutes['quarter'] / 2:.1f}",
                f"{teacher:.1f} ({PRICE * teacher:.2f} $)",
                f"{student:.1f} ({PRICE * student:.2f} $)",
                f"{even:,.0f}",
            ]
        )
    headers = [
        "references",
        "fine-tuning, min",
        "labelling, min",
        "distilling, min",
        "a million answers of the teacher, core-hours",
        "of the student",
        "requests until it has paid for itself",
    ]
    note = (
        f"Minutes on two cores; dollars at {PRICE} a core-hour. Labelling and distilling count as the student's price."
    )
    return f"{table(headers, rows)}\n\n{note}"


def plot(figures: Mapping[str, Any], file: Path) -> None:
    """Plot what is right against the number of references."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = sorted(figures, key=int)
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, style in CURVES.items():
        means = [mean_per_prompt(by_prompt(figures[count]["models"][name]).tolist()) for count in counts]
        places = [int(count) for count in counts]
        (line,) = axes.plot(places, [100 * one.mean for one in means], style, label=name)
        axes.fill_between(
            places,
            [100 * one.low for one in means],
            [100 * one.high for one in means],
            color=line.get_color(),
            alpha=0.15,
        )
    axes.set(xscale="log", xlabel="references (logarithmic)", ylabel="sections right, %")
    axes.set_xticks([int(count) for count in counts], [f"{int(count):,}" for count in counts])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
