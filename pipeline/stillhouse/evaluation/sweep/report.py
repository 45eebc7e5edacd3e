"""Render the report of a sweep: Markdown, JSON, and one HTML file with a plot of size against quality.

    write_sweep_report(report, Path("data/reports/quickstart"))     # sweep.{md,html,json}

The parts that it shares with a student's report are rendered by report/report.py; sweep.html.j2 extends report.html.j2.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from markupsafe import Markup

from stillhouse.evaluation.report import plots
from stillhouse.evaluation.report.answer_warnings import fault_of
from stillhouse.evaluation.report.report import (
    ReportFiles,
    as_json,
    closing_lines,
    models_table,
    opening_lines,
    page,
    write_files,
)
from stillhouse.evaluation.report.tables import DASH, comparison_table, format_interval
from stillhouse.evaluation.results import MetricColumn, ModelRow
from stillhouse.evaluation.sweep.choice import DISTANCE
from stillhouse.evaluation.sweep.results import SweepReport
from stillhouse.evaluation.sweep.verdict import sweep_findings, sweep_warnings

NAME = "sweep"
_LEFT_OUT = ("p95 ms", "perplexity")  # columns left out of the table so that it fits a page; they are in the JSON


def write_sweep_report(report: SweepReport, folder: Path) -> None:
    """Write the three files, each atomically; the JSON, which marks a report as complete, last."""
    files = ReportFiles.in_folder(folder, NAME)
    write_files(files, sweep_markdown(report), sweep_html(report), as_json(report))


def sweep_table(report: SweepReport) -> list[list[str]]:
    """Return headers, then one row per model, with its share of the teacher's first metric and whether it is on the front.

    The share is left out if lower is better. A model with a warning shows its fault in the column of the front.
    """
    whole = comparison_table(report)
    shown_columns = [place for place, header in enumerate(whole[0]) if header not in _LEFT_OUT]
    headers, *rows = [[cells[place] for place in shown_columns] for cells in whole]
    lead = report.lead
    kept = {one.row.role: one.kept[lead.name] for one in report.students if lead and lead.name in one.kept}
    place = headers.index("peak MB")
    table = [[*headers[:place], *(["kept"] if kept else []), "front", *headers[place:]]]
    for model, cells in zip(report.models, rows, strict=True):
        own = [format_interval(kept.get(cells[0]), 1, percent=True)] if kept else []
        own.append(fault_of(model) or ("yes" if model.role in report.choice.front else DASH))
        table.append([*cells[:place], *own, *cells[place:]])
    return table


def sweep_markdown(report: SweepReport, *, narrow: bool = False, page: str = "") -> str:
    """Return the report as GitHub Markdown, warnings first; `narrow` and `page` are as in `report.report.markdown`."""
    lines = opening_lines(f"{report.recipe}: a sweep", sweep_warnings(report), sweep_findings(report), page)
    lines += [*models_table(sweep_table(report), narrow=narrow), ""]
    return "\n".join([*lines, *closing_lines(report, narrow=narrow)])


def sweep_html(report: SweepReport) -> str:
    """Return the report as one self-contained HTML page."""
    headers, *rows = sweep_table(report)
    metric, models = _drawn(report)
    on_front = {place for place, row in enumerate(report.models) if row.role in report.choice.front}
    return page(
        "sweep.html.j2",
        report,
        warnings=sweep_warnings(report),
        findings=sweep_findings(report),
        headers=headers,
        rows=rows,
        caption=(
            f"Parameters against {metric.name}, with 95 % intervals. Ringed, and joined by the dashed line: the front, "
            "students that no other one beats in both"
            f"{'; students with a warning are not on it' if sweep_warnings(report) else ''}"
        ),
        plot=Markup(plots.size_and_score(models, metric, on_front)),
        kl_plot=Markup(plots.intervals(report.models)),
    )


def _drawn(report: SweepReport) -> tuple[MetricColumn, list[ModelRow]]:
    """Return the metric to plot and the models with their scores, which quantised copies do not have here.

    Without task metrics, KL takes the metric's place.
    """
    metric = report.lead or DISTANCE
    figures = [row.scores.get(metric.name) if report.lead else row.kl_per_token for row in report.models]
    return metric, [
        dataclasses.replace(row, scores={metric.name: figure} if figure and not row.is_int8 else {})
        for row, figure in zip(report.models, figures, strict=True)
    ]
