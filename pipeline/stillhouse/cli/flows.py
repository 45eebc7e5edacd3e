"""`stillhouse flows deploy | serve | guard`: what runs on a schedule. Prefect is imported by the command that needs it."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from stillhouse.cli.common import AsJson, reporting_errors

flows_app = typer.Typer(no_args_is_help=True, help="What runs on a schedule, on a Prefect server.")

Only = Annotated[
    str | None, typer.Option("--only", metavar="NAME", help="nightly, weekly, or on-demand. Default: all.")
]
RecipeOf = Annotated[str | None, typer.Option("--recipe", metavar="RECIPE", help="The recipe to run.")]
SetOf = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting of the recipe; repeatable.")
]
CronOf = Annotated[
    str | None, typer.Option("--cron", metavar="CRON", help='When to run what --only names: "0 2 * * *".')
]
Zone = Annotated[str | None, typer.Option("--timezone", metavar="ZONE", help="Of the schedule: Europe/Lisbon.")]
SecretOf = Annotated[
    list[str] | None,
    typer.Option(
        "--secret",
        metavar="VARIABLE=BLOCK",
        envvar="STILLHOUSE_SECRETS",
        help="Let runs find the value of a Prefect Secret block in this environment variable; repeatable.",
    ),
]


@flows_app.command("deploy")
def flows_deploy(
    only: Only = None,
    recipe: RecipeOf = None,
    set_: SetOf = None,
    cron: CronOf = None,
    timezone: Zone = None,
    secret: SecretOf = None,
    as_json: AsJson = False,
) -> None:
    """Create or update the deployments of flows/prefect.yaml, their work pool, and the guard of their runs."""
    with reporting_errors():
        _quietly()
        from stillhouse.cli import results as shown
        from stillhouse.cli.terminal import output
        from stillhouse_flows.definitions import Changes
        from stillhouse_flows.deploy import deploy

        names = deploy(Changes(only, recipe, tuple(set_ or ()), cron, timezone), tuple(secret or ()))
        if as_json:
            shown.print_json({"deployments": names})
        else:
            for name in names:
                output.print(f"deployed {name}", markup=False)
            output.print("Their runs need a worker: prefect worker start --pool stillhouse", markup=False)


@flows_app.command("serve")
def flows_serve(
    only: Only = None, recipe: RecipeOf = None, set_: SetOf = None, cron: CronOf = None, timezone: Zone = None
) -> None:
    """Run the deployments of flows/prefect.yaml on this machine when they are due, with no work pool, until Ctrl-C."""
    with reporting_errors():
        _quietly()
        from stillhouse_flows.definitions import Changes
        from stillhouse_flows.serve import serve

        serve(Changes(only, recipe, tuple(set_ or ()), cron, timezone))


@flows_app.command("guard")
def flows_guard(
    after: Annotated[
        float, typer.Option("--after", metavar="SECONDS", help="Without a sign of life, until a run has crashed.")
    ] = 90,
    begins_within: Annotated[
        float, typer.Option("--begins-within", metavar="SECONDS", help="From a worker's taking a run to its beginning.")
    ] = 600,
) -> None:
    """Let the server end runs whose process is gone, as Crashed; a retry then goes on where the run was."""
    with reporting_errors():
        _quietly()
        from stillhouse.cli.terminal import output
        from stillhouse_flows.recovery import guard

        guard(after, begins_within)
        told = (
            f"a run without a sign of life for {after:g} seconds, or taken and not begun within {begins_within:g}, ends"
        )
        output.print(f"guarded: {told} as Crashed", markup=False)


def _quietly() -> None:
    """Nothing leaves the machine."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
