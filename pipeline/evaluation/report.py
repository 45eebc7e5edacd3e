"""Draw a report: Markdown for a pull request, JSON for programs, and one HTML file that needs no network.

    files = write_report(report, Path("data/reports/quickstart"))

The page's layout is report.html.j2, its plots are SVG from plots.py. Every text that a model or a user wrote is escaped.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.durable import write_atomically
from pipeline.evaluation import plots
from pipeline.evaluation.results import Interval, ModelRow, Report
from pipeline.student.card import count_in_words, megabytes_in_words

_DASH = "–"


@dataclass(frozen=True)
class ReportFiles:
    """Where a report lies."""

    markdown: Path
    html: Path
    json: Path

    @classmethod
    def in_folder(cls, folder: Path) -> ReportFiles:
        """The three files of a report's folder."""
        return cls(folder / "report.md", folder / "report.html", folder / "report.json")


def write_report(report: Report, folder: Path) -> ReportFiles:
    """Write the three files, each whole or not at all; the JSON, by which a report is recognised, last."""
    written = ReportFiles.in_folder(folder)
    write_atomically(written.markdown, markdown(report).encode())
    write_atomically(written.html, html(report).encode())
    write_atomically(written.json, json.dumps(as_json(report), indent=2, ensure_ascii=False, allow_nan=False).encode())
    return written


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON values."""
    return dataclasses.asdict(report)


# ------------------------------------------------------------------------------------------------------------- the table


def comparison_table(report: Report) -> list[list[str]]:
    """Headers, then one row a model, as text: the same in the terminal, in Markdown and in Prefect."""
    headers = [
        "model",
        "parameters",
        "MB",
        "peak MB",
        "tokens/s",
        "p50 ms",
        "p95 ms",
        "KL/token",
        "agreement",
        "perplexity",
    ]
    scored = any(row.reference_score for row in report.models)
    rows = [_cells(row) + ([_interval(row.reference_score, 2)] if scored else []) for row in report.models]
    return [headers + (["reference F1"] if scored else []), *rows]


def _cells(row: ModelRow) -> list[str]:
    return [
        row.role,
        count_in_words(row.parameters).replace(" million", " M"),
        megabytes_in_words(row.megabytes),
        f"{row.peak_memory_megabytes:,.0f}",
        _interval(row.tokens_per_second, 1),
        f"{row.latency_p50_ms:,.0f}",
        f"{row.latency_p95_ms:,.0f}",
        _interval(row.kl_per_token, 2),
        _interval(row.agreement, 1, percent=True),
        _interval(row.perplexity, 1),
    ]


def _interval(interval: Interval | None, digits: int, *, percent: bool = False) -> str:
    """`2.57 [2.35, 2.77]`; a dash where nothing was measured, no brackets where there is nothing to doubt."""
    if interval is None:
        return _DASH
    scale, unit = (100, " %") if percent else (1, "")
    mean, low, high = (_number(value * scale, digits) for value in (interval.mean, interval.low, interval.high))
    return f"{mean}{unit}" if interval.low == interval.high else f"{mean}{unit} [{low}, {high}]"


def _number(value: float, digits: int) -> str:
    if abs(value) >= 1e5:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.{digits if abs(value) < 1000 else 0}f}"


# ----------------------------------------------------------------------------------------------------------- the verdict


def verdict(report: Report) -> str:
    """What the figures say, in plain words; cautious where intervals overlap."""
    student = report.student
    others = [row for row in report.models if row is not student and not row.is_int8]
    copies = [_copy_compared(row, student) for row in report.models if row.is_int8]
    teacher = next((row for row in others if row.role == "teacher"), None)
    sentences = []
    if teacher is not None:
        sentences.append(
            f"The {student.role} has {student.parameters / teacher.parameters:.0%} of the teacher's parameters and writes "
            f"{student.tokens_per_second.mean / teacher.tokens_per_second.mean:.1f} times as many tokens a second."
        )
    if student.kl_per_token is None:
        return " ".join([*sentences, "The teacher gave no log-probabilities, so its distance cannot be told.", *copies])
    sentences.append(f"It stands {student.kl_per_token.mean:.2f} nats a token from the teacher.")
    for row in others:
        if row.role != "teacher" and row.kl_per_token is not None:
            sentences.append(_compared(student.kl_per_token, row.kl_per_token, row.role))
    return " ".join([*sentences, *copies])


def _copy_compared(copy: ModelRow, student: ModelRow) -> str:
    kl = f", and stands {copy.kl_per_token.mean:.2f} nats a token from the teacher" if copy.kl_per_token else ""
    return (
        f"The student's int8 copy takes {copy.megabytes / student.megabytes:.0%} of its space on disk, writes "
        f"{copy.tokens_per_second.mean / student.tokens_per_second.mean:.1f} times as many tokens a second{kl}."
    )


def _compared(student: Interval, baseline: Interval, role: str) -> str:
    if student.high < baseline.low:
        return f"The {role}, at {baseline.mean:.2f}, is clearly farther away."
    if student.low > baseline.high:
        return f"The {role}, at {baseline.mean:.2f}, is clearly nearer."
    return f"From the {role}, at {baseline.mean:.2f}, it is not distinguishable: their intervals overlap."


# -------------------------------------------------------------------------------------------------------------- markdown


def markdown(report: Report) -> str:
    """The report as GitHub Markdown."""
    headers, *rows = comparison_table(report)
    lines = [f"# {report.recipe}", "", verdict(report), "", *_table(headers, rows), ""]
    lines += ["## Held-out prompts", "", overlap_text(report), ""]
    lines += ["## Answers side by side", ""]
    for one in report.answers:
        said = [("prompt", one.prompt)] + ([("reference", one.reference)] if one.reference else [])
        said += [(row.role, answer) for row, answer in zip(report.models, one.answers, strict=True)]
        lines += [*_table(["", ""], [[who, text] for who, text in said]), ""]
    lines += ["## Labels", "", *_table(["", ""], [list(pair) for pair in label_facts(report)]), ""]
    lines += ["## Notes", "", *(f"- {note}" for note in report.notes)]
    lines += [
        "",
        ", ".join(f"{name} {version}" for name, version in report.versions.items()) + f"; {report.created_at}",
        "",
    ]
    return "\n".join(lines)


def _table(headers: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return (
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;") for cell in cells) + " |"
        )

    return [line(headers), "|" + " --- |" * len(headers), *(line(row) for row in rows)]


def overlap_text(report: Report) -> str:
    """What the check of the held-out prompts found."""
    overlap = report.overlap
    found = (
        "none of them is a training prompt too, and none is a near duplicate of one"
        if not overlap.exact and not overlap.near
        else f"{len(overlap.exact)} of them are training prompts too, and {len(overlap.near)} pairs are near duplicates"
    )
    return (
        f"{overlap.held_out} prompts were held out from {overlap.training} training prompts: {found} (word sets with a "
        f"Jaccard similarity of {overlap.threshold} or more, the template's words aside)."
    )


def label_facts(report: Report) -> list[tuple[str, str]]:
    """What labelling left behind, as name and value."""
    labels = report.labels
    rejected = ", ".join(f"{count} {reason}" for reason, count in labels.rejected.items()) or "none"
    return [
        ("dataset", labels.dataset),
        ("rows", f"{labels.train_rows} to learn from, {labels.validation_rows} held out"),
        ("rejected", rejected),
        ("tokens", f"{labels.prompt_tokens:,} in prompts, {labels.completion_tokens:,} in completions"),
        ("soft labels", labels.soft or "none, text only"),
        ("cost", _DASH if labels.cost_usd is None else f"${labels.cost_usd:,.4f}"),
    ]


# ------------------------------------------------------------------------------------------------------------------ html


def html(report: Report) -> str:
    """The report as one page that needs nothing else."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        package_files("pipeline.evaluation").joinpath("report.html.j2").read_text("utf-8")
    )
    headers, *rows = comparison_table(report)
    return template.render(
        report=report,
        verdict=verdict(report),
        headers=headers,
        rows=rows,
        shares=[row.parameters / max(one.parameters for one in report.models) for row in report.models],
        overlap=overlap_text(report),
        facts=label_facts(report),
        kl_plot=Markup(plots.intervals(report.models)),
        size_plot=Markup(plots.size_and_distance(report.models)),
        curves=[(curve.role, Markup(plots.curve(curve, _place(report, curve.role)))) for curve in report.curves],
        role_class=plots.role_class,
    )


def _place(report: Report, role: str) -> int:
    """A model's row in the table, which gives it its colour and mark."""
    return next((place for place, row in enumerate(report.models) if row.role == role), 0)
