"""The command line: parse, call, print. `stillhouse --help` lists the commands.

Exit status: 0 done; 1 failed; 2 the recipe or the arguments are wrong; 3 done, but more prompts were rejected than
`label.max_rejected` allows; 130 interrupted. With --json the result, or {"error": ...}, is one JSON object on standard
output, and everything else goes to standard error. Heavy libraries are imported by the command that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import stillhouse.cli.exchange  # noqa: F401  its commands join those of `stillhouse datasets`
from stillhouse import __version__
from stillhouse.cli import results
from stillhouse.cli.as_flow import AsFlow, as_flow
from stillhouse.cli.common import AsJson, Overrides, RecipePath, print_error, reporting_errors
from stillhouse.cli.datasets import datasets_app
from stillhouse.cli.flows import flows_app
from stillhouse.cli.jobs import jobs_app
from stillhouse.cli.teacher import teacher_app
from stillhouse.processes.quiet import quiet_libraries
from stillhouse.processes.ranks import end_distributed, is_first, launched_by_recipe, require_one_process

if TYPE_CHECKING:
    from stillhouse.labelling.result import LabelResult

_TOO_MANY_REJECTED = 3

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn a large teacher language model into a small student: label, distil, evaluate.",
    epilog="Start here: stillhouse init your-data.csv, or stillhouse run flows/recipes/quickstart.yaml",
)
app.add_typer(datasets_app, name="datasets")
app.add_typer(teacher_app, name="teacher")
app.add_typer(flows_app, name="flows")
app.add_typer(jobs_app, name="jobs")

Only = Annotated[str | None, typer.Option(metavar="MODE", hidden=True)]  # of the student to train; launch.py passes it


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"stillhouse {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version, and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command()
def init(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Your prompts: a .csv, .tsv, .jsonl or .parquet file.")],
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where the files are written.")] = Path(),
    teacher: Annotated[str, typer.Option(help="demo (a small model in this process), api, or vllm (a GPU).")] = "demo",
    prompt_column: Annotated[
        str | None, typer.Option(help="The column with the text to send. Default: a usual name.")
    ] = None,
    reference_column: Annotated[str | None, typer.Option(help="The column with gold answers, if any.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message: what the teacher is, how it answers.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe and a template for your own data: start here."""
    with reporting_errors(as_json):
        require_one_process("init")
        from stillhouse.stages.init import init_recipe

        written = init_recipe(
            folder,
            data,
            teacher=teacher,
            prompt_column=prompt_column,
            reference_column=reference_column,
            system=system,
        )
        results.print_json(results.written_json(written)) if as_json else results.print_written(written, teacher)


@app.command()
def run(recipe: RecipePath, set_: Overrides = None, flow: AsFlow = None, as_json: AsJson = False) -> None:
    """Run all stages: fine-tune the teacher if the recipe says so, label, distil, evaluate and report."""
    with reporting_errors(as_json):
        require_one_process("run")
        from stillhouse.cli.terminal import progress_display
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.checks import check_run
        from stillhouse.stages.stages import run_stages

        loaded = load_recipe(recipe, set_ or [])
        check_run(loaded)
        if as_flow(flow):
            from stillhouse_flows.run import run_flow

            result = run_flow(recipe, set_)
        else:
            with progress_display() as progress:
                result = run_stages(loaded, progress)
        results.print_json(results.run_json(result)) if as_json else results.print_run(result)
        _exit_for_rejections(result.labelled, loaded.label.max_rejected)


@app.command()
def plan(recipe: RecipePath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Estimate labelling before anything is sent: prompts, requests (new, answered), tokens, cost, bytes, time."""
    with reporting_errors(as_json):
        import dataclasses

        from stillhouse.cli.terminal import show_estimate
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.stages import plan_stage

        estimate, ready = plan_stage(load_recipe(recipe, set_ or []))
        results.print_json(dataclasses.asdict(estimate) | {"ready": ready}) if as_json else show_estimate(estimate)
        if not ready:
            print_error(
                "The teacher is not fine-tuned yet, so it has answered nothing. `stillhouse run` fine-tunes it first; "
                "`stillhouse finetune` does only that. The figures are for labelling after fine-tuning."
            )


@app.command()
def advise(recipe: RecipePath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Say what to expect of distilling: ask the teacher a few prompts, and train a short student without it."""
    with reporting_errors(as_json):
        require_one_process("advise")
        import dataclasses

        from stillhouse.cli.terminal import output, progress_display
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.advise import advise as ask_for_advice
        from stillhouse.stages.checks import check_run

        loaded = load_recipe(recipe, set_ or [])
        check_run(loaded)
        with progress_display() as progress:
            advice = ask_for_advice(loaded, progress)
        if as_json:
            results.print_json(dataclasses.asdict(advice) | {"lines": advice.lines()})
        else:
            for line in advice.lines():
                output.print(line, markup=False)


@app.command()
def finetune(recipe: RecipePath, set_: Overrides = None, flow: AsFlow = None, as_json: AsJson = False) -> None:
    """Fine-tune the teacher on the references (`teacher.finetune`). Resumes from the last checkpoint.

    With `teacher.finetune.along` the student is trained in the same steps.
    """
    with reporting_errors(as_json):
        from stillhouse.cli.terminal import progress_display
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.checks import check_finetune
        from stillhouse.stages.stages import finetune_stage

        loaded = load_recipe(recipe, set_ or [])
        check_finetune(loaded)
        if as_flow(flow):
            require_one_process("finetune --flow")
            from stillhouse_flows.finetune import finetune_flow

            result = finetune_flow(recipe, set_)
        else:
            with progress_display() as progress:
                result = finetune_stage(loaded, progress)
            end_distributed()
        assert result is not None
        if is_first() and not launched_by_recipe():
            results.print_json(results.finetuned_json(result)) if as_json else results.print_finetuned(result)


@app.command()
def label(
    recipe: RecipePath,
    reasons: Annotated[
        list[str] | None, typer.Argument(metavar="[REASON...]", help="With --retry-rejected: retry only these reasons.")
    ] = None,
    set_: Overrides = None,
    retry_rejected: Annotated[
        bool,
        typer.Option(
            "--retry-rejected", help="Send again the requests that the teacher's errors rejected; writes a new version."
        ),
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="With batch jobs: submit and collect, but do not wait for running ones.")
    ] = False,
    flow: AsFlow = None,
    as_json: AsJson = False,
) -> None:
    """Label the prompts with the teacher and write the dataset. Resumes after a stop."""
    with reporting_errors(as_json):
        require_one_process("label")
        import asyncio

        from stillhouse.cli.terminal import progress_display
        from stillhouse.errors import JobsPending, UsageError
        from stillhouse.labelling.retrying import Retry
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.checks import check_labels
        from stillhouse.stages.stages import label_stage

        if reasons and not retry_rejected:
            raise UsageError(
                f"the reason {reasons[0]!r} has no effect without --retry-rejected", fix="add --retry-rejected"
            )
        retried = list(reasons or []) if retry_rejected else None

        loaded = load_recipe(recipe, set_ or [])
        check_labels(loaded)
        try:
            if as_flow(flow):
                from stillhouse_flows.label import run_label_flow

                result = run_label_flow(recipe, set_, retried, detach)
            else:
                with progress_display() as progress:
                    result = asyncio.run(label_stage(loaded, progress, Retry.from_reasons(retried), detach=detach))
        except JobsPending as pending:
            results.print_json({"pending": pending.as_dict()}) if as_json else results.print_pending(pending)
            return
        results.print_json(results.label_json(result)) if as_json else results.print_labels(result)
        _exit_for_rejections(result, loaded.label.max_rejected)


@app.command()
def distill(
    recipe: RecipePath, set_: Overrides = None, flow: AsFlow = None, as_json: AsJson = False, only: Only = None
) -> None:
    """Train the student on the dataset, or all students of a sweep. Resumes from the last checkpoint."""
    with reporting_errors(as_json):
        from stillhouse.cli.terminal import progress_display
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.checks import check_distill
        from stillhouse.stages.stages import distill_students

        loaded = load_recipe(recipe, set_ or [])
        check_distill(loaded)
        if as_flow(flow):
            require_one_process("distill --flow")
            from stillhouse_flows.distill import distill_flow

            students = distill_flow(recipe, set_)
        else:
            with progress_display() as progress:
                students = distill_students(loaded, progress, only)
            end_distributed()
        if not is_first() or launched_by_recipe():  # the launching process reports the student
            return
        if as_json:
            results.print_json({"students": [results.student_json(student) for student in students]})
        else:
            for student in students:
                results.print_student(student)


@app.command()
def evaluate(recipe: RecipePath, set_: Overrides = None, flow: AsFlow = None, as_json: AsJson = False) -> None:
    """Measure teacher, baselines and student, or all students of a sweep; write the report (Markdown, HTML, JSON)."""
    with reporting_errors(as_json):
        require_one_process("evaluate")
        from stillhouse.cli.terminal import progress_display
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.checks import check_evaluate
        from stillhouse.stages.stages import evaluate_stage, recipe_dataset

        loaded = load_recipe(recipe, set_ or [])
        check_evaluate(loaded)
        if as_flow(flow):
            from stillhouse_flows.evaluate import evaluate_flow

            result = evaluate_flow(recipe, set_)
        else:
            with progress_display() as progress:
                result = evaluate_stage(loaded, recipe_dataset(loaded), progress)
        results.print_json(results.report_json(result)) if as_json else results.print_report(result)


def main() -> None:
    """Run the command line; the entry point `stillhouse`."""
    quiet_libraries()
    app()


def _exit_for_rejections(result: LabelResult, allowed: float) -> None:
    if result.rejected_share > allowed:
        print_error(
            f"{result.rejected_share:.1%} of the requests were rejected, and label.max_rejected is {allowed:.1%}: "
            f"read the reasons in {result.dataset.folder / 'rejected'}"
        )
        raise typer.Exit(_TOO_MANY_REJECTED)
