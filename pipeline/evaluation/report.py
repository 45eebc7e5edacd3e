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
from pipeline.evaluation.results import Report
from pipeline.evaluation.tables import DASH, answer_quality_table, comparison_table, differences_table
from pipeline.evaluation.verdict import findings
from pipeline.evaluation.warnings import warnings

LOOKS = "Answers: what they look like"


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


# -------------------------------------------------------------------------------------------------------------- markdown


def markdown(report: Report, *, narrow: bool = False, page: str = "") -> str:
    """The report as GitHub Markdown, what is wrong with the student first.

    With `narrow`, models are columns, and four of them fit a page's middle part. `page` is a line that says where the HTML
    lies, below the verdict.
    """
    verdict = " ".join([*(f"**{warning}**" for warning in warnings(report)), findings(report)])
    lines = [f"# {report.recipe}", "", verdict, "", *([page, ""] if page else [])]
    lines += [*_models_table(comparison_table(report), narrow=narrow), ""]
    if report.differences:
        headers, *rows = differences_table(report)
        lines += ["## Differences from the student", "", *_table(headers, rows), ""]
    lines += ["## Held-out prompts", "", overlap_text(report), ""]
    if looks := answer_quality_table(report):
        lines += [f"## {LOOKS}", "", *_models_table(looks, narrow=narrow), ""]
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


def _models_table(table: list[list[str]], *, narrow: bool) -> list[str]:
    """A table of headers and a row a model; with `narrow` the other way round."""
    headers, *rows = [list(cells) for cells in zip(*table, strict=True)] if narrow else table
    return _table(headers, rows)


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
        ("cost", DASH if labels.cost_usd is None else f"${labels.cost_usd:,.4f}"),
    ]


# ------------------------------------------------------------------------------------------------------------------ html


def html(report: Report) -> str:
    """The report as one page that needs nothing else."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        package_files("pipeline.evaluation").joinpath("report.html.j2").read_text("utf-8")
    )
    headers, *rows = comparison_table(report)
    difference_headers, *differences = differences_table(report)
    largest = max(row.parameters or 0 for row in report.models)
    score_plots = [(one.name, plots.size_and_score(report.models, one)) for one in report.metrics[:2]]
    return template.render(
        report=report,
        warnings=warnings(report),
        findings=findings(report),
        headers=headers,
        rows=rows,
        shares=[(row.parameters or largest) / largest for row in report.models],
        difference_headers=difference_headers,
        differences=[(_place(report, row[0]), row) for row in differences],
        score_plots=[(name, Markup(plot)) for name, plot in score_plots if plot],
        looks_title=LOOKS,
        looks=answer_quality_table(report),
        overlap=overlap_text(report),
        facts=label_facts(report),
        kl_plot=Markup(plots.intervals(report.models)),
        size_plot=Markup(plots.size_and_distance(report.models)),
        curves=[(curve.role, Markup(plots.curve(curve, _place(report, curve.role)))) for curve in report.curves],
        role_class=plots.role_class,
        colours=len(plots.SHAPES),
    )


def _place(report: Report, role: str) -> int:
    """A model's row in the table, which gives it its colour and mark."""
    return next((place for place, row in enumerate(report.models) if row.role == role), 0)
