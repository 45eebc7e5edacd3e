"""docker/compose.yaml, read by Docker Compose itself; that its commands work on a real PostgreSQL tests/flows shows."""

import re
from typing import Any

import pytest
from typer.testing import CliRunner

from stillhouse.cli.main import app
from tests.compose import FOLDER, command_of, docker_compose, services

SECRETS = ["POSTGRES_PASSWORD", "PREFECT_SERVER_API_AUTH_STRING", "OPENAI_API_KEY", "VLLM_API_KEY", "HF_TOKEN"]


def test_it_stands_without_any_variable_and_holds_no_secret() -> None:
    """What a `docker compose run quickstart` needs on a fresh clone."""
    assert {"postgres", "server", "deploy", "worker", "worker-gpu", "vllm", "vllm-cpu"} <= set(services())
    for name, service in services().items():
        for variable, value in service.get("environment", {}).items():
            assert not value or not re.search("PASSWORD|AUTH|KEY|TOKEN|SECRET", variable), (name, variable)


def test_secrets_come_from_the_environment_and_reach_whom_they_are_for() -> None:
    given = {name: f"value-of-{name.lower()}" for name in SECRETS}
    reached = {
        name: {
            value.removeprefix("value-of-").upper() for value in (service.get("environment") or {}).values() if value
        }
        & set(SECRETS)
        for name, service in services(**given).items()
    }
    keys = {"OPENAI_API_KEY", "VLLM_API_KEY", "HF_TOKEN"}
    assert reached == {
        "teacher": set(),
        "quickstart": keys,
        "postgres": {"POSTGRES_PASSWORD"},
        "server": {"POSTGRES_PASSWORD", "PREFECT_SERVER_API_AUTH_STRING"},
        "deploy": {"PREFECT_SERVER_API_AUTH_STRING"},
        "worker": {"PREFECT_SERVER_API_AUTH_STRING", *keys},
        "worker-gpu": {"PREFECT_SERVER_API_AUTH_STRING", *keys},
        "vllm": {"VLLM_API_KEY", "HF_TOKEN"},
        "vllm-cpu": {"VLLM_API_KEY"},
    }


def test_the_example_names_every_variable_and_sets_none() -> None:
    example = (FOLDER / ".env.example").read_text()
    named = re.findall(r"^# ([A-Z_]+)=", example, re.M)
    used = {line.split()[0] for line in docker_compose("config", "--variables").splitlines()[1:]}
    by_name = {
        variable
        for service in services().values()
        for variable, value in (service.get("environment") or {}).items()
        if value is None
    }
    assert sorted(named) == sorted(used | by_name)
    assert not re.search(r"^[^#\s]", example, re.M)


def test_nothing_is_open_to_other_machines_and_nothing_of_ours_runs_as_root() -> None:
    for name, service in services().items():
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name
        if service["image"].startswith("stillhouse") and name != "vllm-cpu":  # that one's image names its user
            assert service["user"] == "1000:1000", name
            assert service["cap_drop"] == ["ALL"], name


def test_each_waits_until_what_it_needs_is_ready() -> None:
    found = services()
    waits = {
        name: {other: how["condition"] for other, how in service["depends_on"].items()}
        for name, service in found.items()
        if "depends_on" in service
    }
    assert waits["server"] == {"postgres": "service_healthy"}
    assert waits["deploy"] == {"server": "service_healthy"}
    assert waits["worker"] == waits["worker-gpu"]
    assert waits["worker"] == {"server": "service_healthy", "deploy": "service_completed_successfully"}
    assert all(
        "healthcheck" in found[other] for needs in waits.values() for other, how in needs.items() if "healthy" in how
    )


@pytest.mark.parametrize("name", ["teacher", "quickstart", "deploy"])
def test_stillhouse_knows_its_commands(name: str) -> None:
    words: list[str] = services()[name]["command"]
    options = [word for word in words if word.startswith("--")]
    group = [word for word in words if word in {"teacher", "flows", "deploy", "run", "fetch-demo"}]
    shown = CliRunner().invoke(app, [*group, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0 and all(option in shown.output for option in options)


def test_what_a_host_uses_by_default_is_there() -> None:
    """Folders that are mounted, what images are built from, and a recipe that the image carries."""
    for service in services().values():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind" and "models" not in volume["source"]:
                assert (FOLDER / volume["source"]).is_dir()
        if build := service.get("build"):
            assert (FOLDER.parent / build["dockerfile"]).is_file()
    deploy: dict[str, Any] = services()["deploy"]
    assert (FOLDER.parent / command_of(deploy)[-1]).is_file()
