"""`stillhouse jobs`: the batch jobs of every dataset, what they cost, and how to end them."""

from __future__ import annotations

from typing import Annotated

import typer

from stillhouse.cli import results
from stillhouse.cli.common import LABELS, AsJson, Overrides, RecipePath, Root, reporting_errors

jobs_app = typer.Typer(no_args_is_help=True, help="List, show and cancel the batch jobs of labelling.")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `stillhouse jobs list` shows it.")]


@jobs_app.command("list")
def jobs_list(root: Root = LABELS, as_json: AsJson = False) -> None:
    """List every batch job, the oldest first: its dataset, state, requests and cost."""
    with reporting_errors(as_json):
        from stillhouse.cli.terminal import output
        from stillhouse.labelling.batches.listing import find_jobs, job_lines

        found = find_jobs(root)
        if as_json:
            results.print_json({"jobs": [one.as_dict() for one in found]})
        elif not found:
            output.print(f"no batch job in {root}")
        else:
            for line in job_lines(found):
                output.print(line, markup=False, highlight=False, soft_wrap=True)


@jobs_app.command("show")
def jobs_show(job: JobId, root: Root = LABELS, as_json: AsJson = False) -> None:
    """Show one batch job as it was last seen; `stillhouse label` looks again."""
    with reporting_errors(as_json):
        from stillhouse.cli.terminal import show_pairs
        from stillhouse.labelling.batches.listing import find_job

        found = find_job(root, job)
        if as_json:
            results.print_json(found.as_dict())
        else:
            show_pairs(found.facts())


@jobs_app.command("cancel")
def jobs_cancel(
    recipe: RecipePath,
    jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB...]", help="Only these; all without any.")] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Request the end of a recipe's running batch jobs; `stillhouse label` collects what they have answered."""
    with reporting_errors(as_json):
        import asyncio

        from stillhouse.cli.terminal import output
        from stillhouse.labelling.batches.cancel import cancel_jobs
        from stillhouse.recipe.load import load_recipe

        cancelled = asyncio.run(cancel_jobs(load_recipe(recipe, set_ or []), jobs or []))
        if as_json:
            results.print_json({"cancelled": cancelled})
        elif not cancelled:
            output.print("no job is running")
        else:
            output.print(f"cancelled {', '.join(cancelled)}; `stillhouse label` collects what they have answered")
