"""Whether a command runs as a Prefect flow: as `--flow` says, or because a Prefect API is configured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

AsFlow = Annotated[
    bool | None,
    typer.Option(
        "--flow/--no-flow",
        help="Run as a Prefect flow, on an embedded API if none is configured. Default: only if one is configured.",
        show_default=False,
    ),
]


def as_flow(requested: bool | None) -> bool:
    """Whether to run as a flow: as requested, else if a Prefect API is configured. Sets Prefect's defaults if so."""
    use = requested if requested is not None else _prefect_configured()
    if use:  # no telemetry, and enough time for a slow machine to start the embedded API
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
