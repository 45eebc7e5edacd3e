"""Print the results of commands: as text for people, and as JSON for programs (--json). rich is imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillhouse.formatting import count_in_words, megabytes_in_words

if TYPE_CHECKING:
    from stillhouse.dataset.manifest import Manifest
    from stillhouse.errors import JobsPending
    from stillhouse.evaluation.evaluate import EvaluationResult
    from stillhouse.evaluation.results import Report
    from stillhouse.evaluation.sweep.evaluate import SweepEvaluation
    from stillhouse.evaluation.sweep.results import SweepReport
    from stillhouse.labelling.result import LabelResult
    from stillhouse.stages.init import Written
    from stillhouse.stages.stages import RunResult
    from stillhouse.student.finished.folder import StudentResult


def print_json(result: dict[str, Any]) -> None:
    """Print one JSON object on standard output."""
    from stillhouse.cli.terminal import show_json

    show_json(result)


def format_counts(rows: dict[str, int]) -> str:
    """Return counts by name, such as "12 train, 3 validation"."""
    return ", ".join(f"{count} {split}" for split, count in rows.items())


def written_json(written: Written) -> dict[str, Any]:
    """Return the files that `init` wrote as JSON values."""
    return {
        "recipe": str(written.recipe),
        "template": str(written.template) if written.template else None,
        "prompt_column": written.prompt_column,
        "reference_column": written.reference_column,
    }


def print_written(written: Written, teacher: str) -> None:
    """Print the files that `init` wrote, and the next commands."""
    from stillhouse.cli.terminal import output

    reference = f", gold answers from {written.reference_column!r}" if written.reference_column else ""
    output.print(f"recipe    {written.recipe}: prompts from the column {written.prompt_column!r}{reference}")
    if written.template:
        output.print(f"template  {written.template}: write your task around the column")
    output.print("\nnext:")
    if teacher == "demo":
        output.print("  stillhouse teacher fetch-demo")
    output.print(f"  stillhouse plan {written.recipe}")
    output.print(f"  stillhouse run {written.recipe}")


def run_json(result: RunResult) -> dict[str, Any]:
    """Return the results of all stages as JSON values."""
    finetuned = {"teacher": student_json(result.finetuned)} if result.finetuned else {}
    return finetuned | {
        "labels": label_json(result.labelled),
        "students": [student_json(student) for student in result.students],
        "report": report_json(result.evaluation),
    }


def print_run(result: RunResult) -> None:
    """Print the results of all stages, in their order."""
    if result.finetuned:
        print_student(result.finetuned)
    print_labels(result.labelled)
    for student in result.students:
        print_student(student)
    print_report(result.evaluation)


def print_pending(pending: JobsPending) -> None:
    """Print that batch jobs are running."""
    from stillhouse.cli.terminal import output

    output.print(f"labels   {pending}", markup=False)


def label_json(result: LabelResult) -> dict[str, Any]:
    """Return the result of labelling as JSON values."""
    return manifest_json(result.dataset.manifest) | {
        "folder": str(result.dataset.folder),
        "parents": list(result.dataset.manifest.parents),
        "sent": result.sent,
        "reused": result.reused,
        "fresh": result.fresh,
        "rejected_by_teacher": result.rejected_by_teacher,
        "message": str(result),
    }


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """Return a summary of a manifest as JSON values."""
    return {
        "dataset": manifest.label,
        "teacher": manifest.teacher.model,
        "rows": manifest.rows,
        "rejected": manifest.rejected,
        "prompt_tokens": manifest.totals.prompt_tokens,
        "completion_tokens": manifest.totals.completion_tokens,
        "cost_usd": manifest.totals.cost_usd,
        "created_at": manifest.created_at,
    }


def print_labels(result: LabelResult) -> None:
    """Print the result of labelling in one line."""
    from stillhouse.cli.terminal import output

    manifest = result.dataset.manifest
    if not result.fresh:
        output.print(f"labels   {result} ({result.dataset.folder})", markup=False)
        _print_retry_hint(result)
        return
    source = f", from {', '.join(manifest.parents)}" if manifest.parents else ""
    rejected = f", rejected {format_counts(manifest.rejected)}" if manifest.rejected else ""
    output.print(
        f"labels   {result.dataset.folder}{source}: {format_counts(manifest.rows)}{rejected}; "
        f"{result.sent} requests sent, {result.reused} answered before",
        markup=False,
    )
    _print_retry_hint(result)


def _print_retry_hint(result: LabelResult) -> None:
    """Print how to send again the requests that the teacher's errors rejected, if any."""
    from stillhouse.cli.terminal import errors

    if lost := result.rejected_by_teacher:
        errors.print(
            f"The teacher's errors rejected {lost:,} requests: fix the cause, then send them again with --retry-rejected.",
            markup=False,
        )


def student_json(result: StudentResult) -> dict[str, Any]:
    """Return a student as JSON values; a student of a sweep also has its `label`."""
    own = {"label": result.label} if result.label else {}
    return result.card.model_dump(mode="json") | own | {"folder": result.folder, "trained": result.trained}


def finetuned_json(result: StudentResult) -> dict[str, Any]:
    """Return a fine-tuned teacher as JSON values, with the student that was trained in the same steps, if any."""
    along = {"student": student_json(result.along)} if result.along else {}
    return {"teacher": student_json(result)} | along


def print_finetuned(result: StudentResult) -> None:
    """Print a fine-tuned teacher, and the student that was trained in the same steps, if any."""
    print_student(result)
    if result.along:
        print_student(result.along)


def print_student(result: StudentResult) -> None:
    """Print a student in one line."""
    from stillhouse.cli.terminal import output

    card, size = result.card, megabytes_in_words
    did = f"trained in {card.seconds:.0f} s, {card.steps} steps" if result.trained else "already trained"
    copy = f"; its int8 copy takes {size(card.int8.megabytes)} MB" if card.int8 else ""
    what = f"of {card.dataset}, {count_in_words(card.parameters)} parameters, {size(card.megabytes)} MB"
    output.print(f"{'teacher' if card.is_teacher else 'student'}  {result.folder}: {what}, {did}{copy}", markup=False)
    if card.rows_cut_off:
        output.print(
            f"         {card.rows_cut_off} of its {card.rows} rows are completions without an end token (finish_reason is "
            "not 'stop'): no end was learnt from them. Raise label.sampling.max_tokens, or reject them with quality: "
            "[{kind: finish-reason}]",
            markup=False,
        )
    if card.rows_unrendered:
        output.print(
            f"         {card.rows_unrendered:,} rows were skipped: its chat template rejects their prompts",
            markup=False,
        )


def report_json(result: EvaluationResult | SweepEvaluation) -> dict[str, Any]:
    """Return a report and the paths of its files as JSON values."""
    from stillhouse.evaluation.report.report import as_json

    return as_json(result.report) | {
        "warnings": _warnings(result.report),
        "fresh": result.fresh,
        "files": [str(file) for file in (result.files.markdown, result.files.html, result.files.json)],
    }


def print_report(result: EvaluationResult | SweepEvaluation) -> None:
    """Print the warnings, the tables, the path of the HTML page and, for a sweep, which student to choose."""
    from stillhouse.cli.terminal import output, show_comparison
    from stillhouse.evaluation.report.report import ANSWER_QUALITY_TITLE
    from stillhouse.evaluation.report.tables import answer_quality_table, comparison_table
    from stillhouse.evaluation.sweep.report import sweep_table
    from stillhouse.evaluation.sweep.results import SweepReport
    from stillhouse.evaluation.sweep.verdict import sweep_findings

    report = result.report
    output.print()
    for warning in _warnings(report):
        output.print(f"WARNING  {warning}\n", style="bold", markup=False)
    headers, *rows = sweep_table(report) if isinstance(report, SweepReport) else comparison_table(report)
    show_comparison(headers, rows)
    if quality := answer_quality_table(report):
        output.print(f"\n{ANSWER_QUALITY_TITLE}", markup=False)
        show_comparison(quality[0], quality[1:])
    if isinstance(report, SweepReport):
        output.print(f"\n{sweep_findings(report)}", markup=False)
    output.print(f"\nreport   {result.files.html}", markup=False)


def _warnings(report: Report | SweepReport) -> list[str]:
    """Return the warnings about the students."""
    from stillhouse.evaluation.report.answer_warnings import warnings
    from stillhouse.evaluation.sweep.results import SweepReport
    from stillhouse.evaluation.sweep.verdict import sweep_warnings

    return sweep_warnings(report) if isinstance(report, SweepReport) else warnings(report)
