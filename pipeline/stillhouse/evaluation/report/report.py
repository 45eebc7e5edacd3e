"""Render a report: Markdown for a pull request, JSON for programs, and one HTML file that needs no network.

    files = write_report(report, Path("data/reports/quickstart"))

The page's layout is report.html.j2; its plots are inline SVG from plots.py. All text from models and users is escaped.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stillhouse.errors import UsageError
from stillhouse.evaluation.report import importance_plot, plots
from stillhouse.evaluation.report.answer_warnings import warnings
from stillhouse.evaluation.report.drawing import MARKERS, role_class
from stillhouse.evaluation.report.tables import (
    DASH,
    ComparedModels,
    answer_quality_table,
    comparison_table,
    differences_table,
    rounds_table,
)
from stillhouse.evaluation.report.verdict import findings
from stillhouse.evaluation.results import Answers, LabelSummary, Overlap, Report
from stillhouse.formatting import markdown_table
from stillhouse.inputs.plain_json import to_json
from stillhouse.storage.durable import write_atomically

_HEAD_BYTES = 4096
_TITLE = re.compile("– Stillhouse report</title>".encode())  # identifies the HTML page
_KEYS = re.compile(rb'^{\s*"recipe"')  # identifies the JSON
ANSWER_QUALITY_TITLE = "Quality of the answers"
ROUNDS_TITLE = "Rounds"
ROUNDS_EXPLANATION = (
    "The held-out KL is that of the student that a round made, on the teacher's text. All other figures describe the "
    "student that wrote the round's rollouts, before it learnt from them; overlap is the share of the teacher's likeliest "
    "tokens that are also among the student's, and its mass the probability that the teacher gives to them."
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class RenderedReport(ComparedModels, Protocol):
    """A report of either kind, with everything it shows besides its table."""

    @property
    def answers(self) -> tuple[Answers, ...]:
        """Answers to the first held-out prompts, in the order of the models."""

    @property
    def overlap(self) -> Overlap:
        """Overlap of the held-out prompts with the training prompts."""

    @property
    def labels(self) -> LabelSummary:
        """Summary of the labelled dataset."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on how the figures were measured and how to read them."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the software, and the machine."""

    @property
    def created_at(self) -> str:
        """Time of the measurement, ISO 8601, UTC."""


@dataclass(frozen=True)
class ReportFiles:
    """Paths of a report's three files."""

    markdown: Path
    html: Path
    json: Path

    @classmethod
    def in_folder(cls, folder: Path, name: str = "report") -> ReportFiles:
        """Return the paths of the three files in `folder`; `name` is `report` or `sweep`."""
        return cls(*(folder / f"{name}.{kind}" for kind in ("md", "html", "json")))

    def refuse_foreign_files(self) -> None:
        """Refuse to overwrite files of these names that Stillhouse did not write.

        Raises:
            UsageError: a file with a report's name exists and is not a report of Stillhouse.
        """
        page = _begins_with(self.html, _TITLE)
        ours = page or _begins_with(self.json, _KEYS)  # either may be missing, or truncated by a crash
        for file, well in ((self.html, page), (self.markdown, ours), (self.json, ours)):
            if file.exists() and not well:
                raise UsageError(
                    f"{file} exists and is not a report of Stillhouse",
                    setting="evaluate.reports",
                    value=str(file.parent.parent),
                    fix="move the file, or name another folder",
                )


def _begins_with(file: Path, mark: re.Pattern[bytes]) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return mark.search(stream.read(_HEAD_BYTES)) is not None


def write_report(report: Report, folder: Path) -> ReportFiles:
    """Write the three files, each atomically; the JSON, which marks a report as complete, last."""
    written = ReportFiles.in_folder(folder)
    write_files(written, markdown(report), html(report), as_json(report))
    return written


def write_files(files: ReportFiles, markdown: str, html: str, content: dict[str, Any]) -> None:
    """Write the three forms of a report, each atomically; the JSON last."""
    write_atomically(files.html, html.encode())
    write_atomically(files.markdown, markdown.encode())
    write_atomically(files.json, to_json(content, indent=2).encode())


def as_json(report: DataclassInstance) -> dict[str, Any]:
    """Return the report as plain JSON values."""
    return dataclasses.asdict(report)


# -------------------------------------------------------------------------------------------------------------- markdown


def markdown(report: Report, *, narrow: bool = False, page: str = "") -> str:
    """Return the report as GitHub Markdown, warnings about the student first.

    Args:
        report: the report.
        narrow: transpose the tables, so that models are columns; four of them fit the middle column of a Prefect page.
        page: a line below the verdict that says where the HTML report is; empty: no line.
    """
    lines = opening_lines(report.recipe, warnings(report), findings(report), page)
    lines += [*models_table(comparison_table(report), narrow=narrow), ""]
    if report.differences:
        headers, *rows = differences_table(report)
        lines += ["## Differences from the student", "", *markdown_table(headers, rows), ""]
    if rounds := rounds_table(report.rounds):
        headers, *rows = rounds
        lines += [f"## {ROUNDS_TITLE}", "", *markdown_table(headers, rows), "", ROUNDS_EXPLANATION, ""]
    if report.starts:
        lines += [f"## {importance_plot.TITLE}", ""]
        lines += [part for one in report.starts for part in (importance_plot.summary_line(one), "")]
    return "\n".join([*lines, *closing_lines(report, narrow=narrow)])


def opening_lines(title: str, warnings: Sequence[str], findings: str, page: str) -> list[str]:
    """Return the first lines of a report: title, warnings in bold, findings, and the line `page` unless it is empty."""
    verdict = " ".join([*(f"**{warning}**" for warning in warnings), findings])
    return [f"# {title}", "", verdict, "", *([page, ""] if page else [])]


def closing_lines(report: RenderedReport, *, narrow: bool = False) -> list[str]:
    """Return the last lines of a report: held-out prompts and their answers, labels, notes, versions."""
    lines = ["## Held-out prompts", "", overlap_text(report), ""]
    if quality := answer_quality_table(report):
        lines += [f"## {ANSWER_QUALITY_TITLE}", "", *models_table(quality, narrow=narrow), ""]
    lines += ["## Answers side by side", ""]
    for one in report.answers:
        cells = [("prompt", one.prompt)] + ([("reference", one.reference)] if one.reference else [])
        cells += [(row.role, answer) for row, answer in zip(report.models, one.answers, strict=True)]
        lines += [*markdown_table(["", ""], [[who, text] for who, text in cells]), ""]
    lines += ["## Labels", "", *markdown_table(["", ""], [list(pair) for pair in label_facts(report)]), ""]
    lines += ["## Notes", "", *(f"- {note}" for note in report.notes)]
    return [
        *lines,
        "",
        ", ".join(f"{name} {version}" for name, version in report.versions.items()) + f"; {report.created_at}",
        "",
    ]


def models_table(table: list[list[str]], *, narrow: bool) -> list[str]:
    """Return the Markdown lines of a table with one row per model; with `narrow`, transposed."""
    headers, *rows = [list(cells) for cells in zip(*table, strict=True)] if narrow else table
    return markdown_table(headers, rows)


def overlap_text(report: RenderedReport) -> str:
    """Return a sentence on the overlap of held-out and training prompts."""
    overlap = report.overlap
    found = (
        "none of them is also a training prompt, and none is a near duplicate of one"
        if not overlap.exact and not overlap.near
        else f"{len(overlap.exact)} of them are also training prompts, and {len(overlap.near)} pairs are near duplicates"
    )
    return (
        f"{overlap.held_out} prompts were held out from {overlap.training} training prompts: {found} (word sets with a "
        f"Jaccard similarity of {overlap.threshold} or more, without the template's words)."
    )


def label_facts(report: RenderedReport) -> list[tuple[str, str]]:
    """Return the summary of the labelled dataset as (name, value) pairs."""
    labels = report.labels
    rejected = ", ".join(f"{count} {reason}" for reason, count in labels.rejected.items()) or "none"
    return [
        ("dataset", labels.dataset),
        ("rows", f"{labels.train_rows} for training, {labels.validation_rows} held out"),
        ("rejected", rejected),
        ("tokens", f"{labels.prompt_tokens:,} in prompts, {labels.completion_tokens:,} in completions"),
        ("soft labels", labels.soft or "none (text only)"),
        ("cost", DASH if labels.cost_usd is None else f"${labels.cost_usd:,.4f}"),
    ]


# ------------------------------------------------------------------------------------------------------------------ html


def html(report: Report) -> str:
    """Return the report as one self-contained HTML page."""
    headers, *rows = comparison_table(report)
    difference_headers, *differences = differences_table(report)
    score_plots = [(one.name, plots.size_and_score(report.models, one)) for one in report.metrics[:2]]
    return page(
        "report.html.j2",
        report,
        warnings=warnings(report),
        findings=findings(report),
        headers=headers,
        rows=rows,
        difference_headers=difference_headers,
        differences=[(_row_index(report, row[0]), row) for row in differences],
        score_plots=[(name, Markup(plot)) for name, plot in score_plots if plot],
        kl_plot=Markup(plots.intervals(report.models)),
        size_plot=Markup(plots.size_and_distance(report.models)),
        rounds_title=ROUNDS_TITLE,
        rounds=rounds_table(report.rounds),
        rounds_explanation=ROUNDS_EXPLANATION,
        rounds_plot=Markup(plots.rounds_plot(report.rounds)),
        layers_title=importance_plot.TITLE,
        layers=[
            (
                importance_plot.layers_phrase(one),
                importance_plot.explanation(one),
                Markup(importance_plot.bar_chart(one)),
            )
            for one in report.starts
        ],
        curves=[
            (curve.role, Markup(plots.loss_plot(curve, _row_index(report, curve.role)))) for curve in report.curves
        ],
    )


def page(template: str, report: RenderedReport, **parts: Any) -> str:
    """Render a template of this folder with the variables that all reports share, and `parts`, which are its own."""
    largest = max(row.parameters or 0 for row in report.models)
    return (
        _templates()
        .get_template(template)
        .render(
            report=report,
            shares=[(row.parameters or largest) / largest for row in report.models],
            answer_quality_title=ANSWER_QUALITY_TITLE,
            answer_quality=answer_quality_table(report),
            overlap=overlap_text(report),
            facts=label_facts(report),
            role_class=role_class,
            colours=len(MARKERS),
            **parts,
        )
    )


@cache
def _templates() -> Environment:
    loader = PackageLoader("stillhouse.evaluation.report", "")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _row_index(report: Report, role: str) -> int:
    """Return a model's row in the table, which determines its colour and mark."""
    return next((place for place, row in enumerate(report.models) if row.role == role), 0)
