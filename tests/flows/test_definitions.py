"""flows/prefect.yaml, as it stands and with the changes that a command asks for; no server is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.errors import PrefectUnavailable, RecipeError
from tests.flows import PREFECTS_WARNINGS

pytestmark = PREFECTS_WARNINGS


def test_the_file_has_a_nightly_labelling_a_weekly_distillation_and_the_whole_way_on_demand() -> None:
    from stillhouse_flows.definitions import Changes, load_flow, read_definitions

    entries = {entry["name"]: entry for entry in read_definitions(Changes()).deployments}
    assert {name: load_flow(entry).name for name, entry in entries.items()} == {
        "nightly": "label",
        "weekly": "distill",
        "on-demand": "run",
        "part": "label",
    }
    assert {name: [one["cron"] for one in entry["schedules"]] for name, entry in entries.items()} == {
        "nightly": ["0 2 * * *"],
        "weekly": ["0 6 * * 0"],
        "on-demand": [],
        "part": [],
    }
    assert [name for name, entry in entries.items() if entry["concurrency_limit"] is None] == ["part"]


def test_a_change_reaches_what_it_names_and_nothing_else() -> None:
    from stillhouse_flows.definitions import Changes, read_definitions

    changes = Changes("nightly", "flows/recipes/api.yaml", ("label.samples=2",), "30 1 * * *", "Europe/Lisbon")
    (entry,) = read_definitions(changes).deployments
    assert entry["parameters"] == {"recipe": "flows/recipes/api.yaml", "overrides": ["label.samples=2"]}
    assert entry["schedules"] == [{"cron": "30 1 * * *", "timezone": "Europe/Lisbon", "slug": "nightly"}]
    assert {one["name"] for one in read_definitions(Changes()).deployments} == {
        "nightly",
        "weekly",
        "on-demand",
        "part",
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"only": "hourly"}, "--only is 'hourly'.*nightly, weekly, on-demand, part"),
        ({"cron": "* * * * *"}, "Choose one with --only"),
        ({"only": "nightly", "cron": "every night"}, "cron 'every night'.*five fields"),
        ({"only": "nightly", "timezone": "Mars/Base"}, "time zone 'Mars/Base'.*IANA"),
        ({"recipe": "nowhere.yaml"}, "the recipe nowhere.yaml does not exist"),
        ({"overrides": ("label.sample=2",)}, "Did you mean 'samples'"),
    ],
)
def test_wrong_changes_are_rejected_before_anything_is_sent(changes: dict[str, str], said: str) -> None:
    from stillhouse_flows.definitions import Changes, read_definitions

    with pytest.raises(RecipeError, match=said):
        read_definitions(Changes(**changes))  # type: ignore[arg-type]


def test_runs_work_where_the_deployment_was_made_or_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillhouse_flows.deploy import working_folder

    monkeypatch.delenv("STILLHOUSE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert working_folder() == {"directory": str(tmp_path)}
    monkeypatch.setenv("STILLHOUSE_HOME", "/srv/stillhouse")
    assert working_folder() == {"directory": "/srv/stillhouse"}
    monkeypatch.setenv("STILLHOUSE_HOME", "stillhouse")
    with pytest.raises(RecipeError, match="STILLHOUSE_HOME is 'stillhouse': .*Set it to an absolute path"):
        working_folder()


def test_without_a_server_a_command_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from stillhouse_flows.definitions import Changes
    from stillhouse_flows.deploy import deploy
    from stillhouse_flows.recovery import guard

    not_set = pytest.raises(PrefectUnavailable, match="PREFECT_API_URL: it is not set.*prefect server start")
    with temporary_settings(restore_defaults={PREFECT_API_URL}), not_set:
        deploy(Changes())
    with temporary_settings({PREFECT_API_URL: "http://me:hidden@127.0.0.1:9/api"}):
        with pytest.raises(PrefectUnavailable, match="is 'http://127.0.0.1:9/api': the server does not answer"):
            guard()
        with pytest.raises(RecipeError, match="--after is 30"):
            guard(30)
        with pytest.raises(RecipeError, match="--begins-within is 5: .*Give 30 seconds or more"):
            guard(begins_within=5)


def test_the_commands_are_quick_to_ask_for_help() -> None:
    probe = "import sys, stillhouse.cli.main; print('prefect' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_deployments_that_can_meet_share_a_queue_and_parts_do_not_wait_in_it() -> None:
    """A run of any of them may write the dataset or the students of the same recipe; a run waits for its parts."""
    from stillhouse_flows.definitions import Changes, read_definitions

    definitions = read_definitions(Changes())
    assert [entry["name"] for entry in definitions.sequential] == ["nightly", "weekly", "on-demand"]
    assert [entry["name"] for entry in definitions.parallel] == ["part"]
    assert definitions.queues == [("stillhouse", "one-at-a-time")]
    assert {entry["work_pool"]["name"] for entry in definitions.deployments} == {"stillhouse"}
    assert read_definitions(Changes(only="part")).queues == []
