"""`stillhouse flows deploy | serve | guard`: scheduled runs. Prefect is imported by the command that needs it."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from stillhouse.cli.common import AsJson, Overrides, reporting_errors

flows_app = typer.Typer(no_args_is_help=True, help="Scheduled runs, on a Prefect server.")

Only = Annotated[
    str | None, typer.Option("--only", metavar="NAME", help="nightly, weekly, on-demand or part. Default: all.")
]
RecipeOf = Annotated[str | None, typer.Option("--recipe", metavar="RECIPE", help="The recipe to run.")]
CronOf = Annotated[
    str | None,
    typer.Option("--cron", metavar="CRON", help='Schedule of the deployment that --only names: "0 2 * * *".'),
]
Zone = Annotated[
    str | None, typer.Option("--timezone", metavar="ZONE", help="Time zone of the schedule, such as Europe/Lisbon.")
]
SecretOf = Annotated[
    list[str] | None,
    typer.Option(
        "--secret",
        metavar="VARIABLE=BLOCK",
        envvar="STILLHOUSE_SECRETS",
        help="Set this environment variable of runs to the value of a Prefect Secret block; repeatable.",
    ),
]


@flows_app.command("deploy")
def flows_deploy(
    only: Only = None,
    recipe: RecipeOf = None,
    set_: Overrides = None,
    cron: CronOf = None,
    timezone: Zone = None,
    secret: SecretOf = None,
    as_json: AsJson = False,
) -> None:
    """Create or update the deployments of flows/prefect.yaml, their work pool, and the automations of `guard`."""
    with reporting_errors(as_json):
        _disable_telemetry()
        from stillhouse.cli import results
        from stillhouse.cli.terminal import output
        from stillhouse_flows.definitions import Changes
        from stillhouse_flows.deploy import deploy

        names = deploy(Changes(only, recipe, tuple(set_ or ()), cron, timezone), tuple(secret or ()))
        if as_json:
            results.print_json({"deployments": names})
        else:
            for name in names:
                output.print(f"deployed {name}", markup=False)
            output.print("Their runs need a worker: prefect worker start --pool stillhouse", markup=False)


@flows_app.command("serve")
def flows_serve(
    only: Only = None, recipe: RecipeOf = None, set_: Overrides = None, cron: CronOf = None, timezone: Zone = None
) -> None:
    """Run the deployments of flows/prefect.yaml on this machine on schedule, without a work pool, until Ctrl-C."""
    with reporting_errors():
        _disable_telemetry()
        from stillhouse_flows.definitions import Changes
        from stillhouse_flows.serve import serve

        serve(Changes(only, recipe, tuple(set_ or ()), cron, timezone))


@flows_app.command("guard")
def flows_guard(
    after: Annotated[
        float,
        typer.Option(
            "--after", metavar="SECONDS", help="Time without a heartbeat after which a run is marked Crashed."
        ),
    ] = 90,
    begins_within: Annotated[
        float,
        typer.Option(
            "--begins-within", metavar="SECONDS", help="Time from when a worker takes a run until it must have begun."
        ),
    ] = 600,
) -> None:
    """Let the server mark runs whose process is lost as Crashed; a retry then resumes them."""
    with reporting_errors():
        _disable_telemetry()
        from stillhouse.cli.terminal import output
        from stillhouse_flows.recovery import guard

        guard(after, begins_within)
        rule = (
            f"no heartbeat for {after:g} seconds, or taken by a worker and not begun within {begins_within:g} seconds"
        )
        output.print(f"guarded: a run is marked Crashed after {rule}", markup=False)


def _disable_telemetry() -> None:
    """Turn off the telemetry of Prefect and other libraries."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
