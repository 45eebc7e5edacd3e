"""Deployments on a real server with a real worker: due runs happen, wrong ones are refused, killed ones go on.

The tests run in the order they stand in; they share one server, and each waits for what takes Prefect its time.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.states import Pending

from stillhouse.recipe.recipe import Recipe
from tests.conftest import WORDS, MakeRecipe
from tests.flows import PREFECTS_WARNINGS
from tests.flows.conftest import PrefectServer
from tests.namesakes import add_namesakes, refuse_imported_namesakes
from tests.process_tree import processes
from tests.stand_in import running_stand_in

pytestmark = [pytest.mark.slow, PREFECTS_WARNINGS]

KEY = "sk-live-77aa01c3-do-not-show"
GONE = 90  # seconds without a sign of life; a server on SQLite may stand still for a minute (docs/operations.md)
NOT_BEGUN = 150  # seconds from a worker's taking a run; a process of a slow machine takes half a minute to begin
PATIENCE = 240  # seconds: a server on SQLite may stand still for a minute, and for another (docs/operations.md)
TAKEN = "taken and not begun"


def command(server: PrefectServer, folder: Path, *arguments: str) -> str:
    """What `python -m ...` prints."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=server.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a recipe, deployed to be labelled every minute, and with files called as ours and the libraries are."""
    folder = tmp_path_factory.mktemp("home")
    add_namesakes(folder)
    (folder / "words.jsonl").write_text("".join(json.dumps({"word": word}) + "\n" for word in WORDS))
    (folder / "words.j2").write_text("Explain {{ word }}.\n")
    recipe = {
        "name": "words",
        "prompts": {"source": "words.jsonl", "template": "words.j2", "holdout": 0.3},
        "teacher": {"kind": "scripted"},
        "label": {"shard_size": 4},
        "dataset": {"root": "labels", "name": "words"},
    }
    (folder / "words.yaml").write_text(yaml.safe_dump(recipe))
    every_minute = ["--only", "nightly", "--recipe", "words.yaml", "--cron", "* * * * *"]
    assert "deployed label/nightly" in command(prefect_server, folder, "stillhouse", "flows", "deploy", *every_minute)
    yield folder
    refuse_imported_namesakes(folder)


@contextmanager
def running_worker(server: PrefectServer, folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the pool, which starts in another folder than its runs work in."""
    log = folder / f"worker-{time.monotonic_ns()}.log"
    with log.open("w") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "stillhouse", *options],
            cwd=folder,
            env={**server.environment, "OPENAI_API_KEY": KEY},
            stdout=output,
            stderr=output,
        )
    try:
        yield worker
    finally:
        kill_all(worker.pid)
        worker.wait()


def kill_all(pid: int) -> None:
    """SIGKILL for a process and all that it started."""
    running = processes()
    doomed = [pid]
    for parent in doomed:
        doomed += [process.pid for process in running if process.parent == parent]
    for one in doomed:
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            continue


def ask(server: PrefectServer, question: Callable[[Any], Awaitable[Any]]) -> Any:
    """The answer to a question to the server's client."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    async def asked() -> Any:
        async with get_client() as client:
            return await question(client)

    password = server.environment.get("PREFECT_API_AUTH_STRING")
    with temporary_settings({PREFECT_API_URL: server.url, PREFECT_API_AUTH_STRING: password}):
        return asyncio.run(asked())


async def nightly(client: Any) -> Any:
    return await client.read_deployment_by_name("label/nightly")


async def pause(client: Any) -> None:
    await client.pause_deployment((await nightly(client)).id)


async def open_runs(client: Any) -> list[Any]:
    """Those that a worker has taken and that have not ended: each holds the pool's only place."""
    return [run for run in await client.read_flow_runs() if run.state.is_pending() or run.state.is_running()]


def start_run(server: PrefectServer, **parameters: Any) -> Any:
    """A run of label/nightly that is due now."""

    async def question(client: Any) -> Any:
        return await client.create_flow_run_from_deployment((await nightly(client)).id, parameters=parameters)

    return ask(server, question)


def told(server: PrefectServer, home: Path) -> str:
    """The runs, and what the workers said, for a failure."""
    runs = ask(server, lambda client: client.read_flow_runs())
    logs = "".join(f"\n{log.name}:\n{log.read_text()[-4000:]}" for log in home.glob("*.log"))
    return f"{[(run.name, run.state_name, run.state.message) for run in runs]}{logs}"


def wait_for_run(server: PrefectServer, wanted: Callable[[Any], bool], seconds: float = PATIENCE) -> Any:
    """The first run that is as wanted."""
    until = time.monotonic() + seconds
    while True:
        runs = ask(server, lambda client: client.read_flow_runs())
        found = [run for run in runs if wanted(run)]
        if found:
            return found[0]
        assert time.monotonic() < until, [(run.name, run.state_name, run.state.message) for run in runs]
        time.sleep(1)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"recipe": 3}, "'recipe'.*3 is not of type 'string'"),
        ({"recipe": ""}, "'recipe'.*non-empty"),
        ({"overrides": "a=1"}, "'overrides'"),
        ({"overrides": ["label.samples"]}, r"'overrides\[0\]'"),
        ({"recipes": "words.yaml"}, "Additional properties are not allowed.*recipes"),
    ],
)
def test_the_api_refuses_wrong_parameters(
    prefect_server: PrefectServer, home: Path, parameters: dict[str, Any], said: str
) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    with pytest.raises(PrefectHTTPStatusError, match=said):
        start_run(prefect_server, **parameters)


def test_the_guard_is_one_pair_however_often_it_is_set_up(prefect_server: PrefectServer, home: Path) -> None:
    seconds = ["--after", str(GONE), "--begins-within", str(NOT_BEGUN)]
    for _ in range(2):
        command(prefect_server, home, "stillhouse", "flows", "guard", *seconds)
    automations = ask(prefect_server, lambda client: client.read_automations())
    assert sorted(one.trigger.within.total_seconds() for one in automations) == [GONE, NOT_BEGUN]
    assert all(one.enabled for one in automations)


def test_a_worker_takes_a_run_and_is_gone(prefect_server: PrefectServer, home: Path) -> None:
    """What is left of it is looked at by the last test: it takes a while."""
    command(prefect_server, home, "stillhouse", "flows", "deploy", "--only", "part")

    async def taken(client: Any) -> Any:
        deployment = await client.read_deployment_by_name("label/part")
        run = await client.create_flow_run_from_deployment(
            deployment.id, parameters={"recipe": "words.yaml"}, name=TAKEN, state=Pending()
        )
        return await client.read_flow_run(run.id)

    assert ask(prefect_server, taken).state_name == "Pending"


def test_a_due_run_happens_and_a_failed_one_says_the_mend_without_the_key(
    prefect_server: PrefectServer, home: Path, api_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    with running_stand_in() as teacher, running_worker(prefect_server, home):
        refused = recipe_file(api_recipe(teacher.base_url, ["Name a colour. !key401"]))
        wrong = start_run(prefect_server, recipe=str(refused))
        failed = wait_for_run(prefect_server, lambda run: run.id == wrong.id and run.state.is_final())
        due = wait_for_run(prefect_server, lambda run: run.auto_scheduled and run.state.is_completed())
        ask(prefect_server, pause)  # its schedule
        until = time.monotonic() + PATIENCE
        while going := [run for run in ask(prefect_server, open_runs) if run.name != TAKEN]:
            assert time.monotonic() < until, (going, told(prefect_server, home))
            time.sleep(1)
        assert f"Bearer {KEY}" in teacher.stats.keys
    assert failed.state_name == "Failed"
    assert "Check teacher.model, the base URL and the API key" in failed.state.message
    assert KEY not in failed.state.message
    assert failed.name == "label api"
    assert due.name == "label words v001"
    assert {"stillhouse", "label", "words"} <= set(due.tags)
    manifest = json.loads((home / "labels/words/v001/manifest.json").read_text())
    assert sum(manifest["rows"].values()) == len(WORDS)


def test_a_run_that_is_killed_with_its_worker_ends_as_crashed_and_a_retry_goes_on(
    prefect_server: PrefectServer, home: Path, api_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    prompts = [f"Name thing {number}." for number in range(40)]
    with running_stand_in(latency=0.3) as teacher:
        recipe = recipe_file(api_recipe(teacher.base_url, prompts, concurrency=2, shard_size=10))
        with running_worker(prefect_server, home) as worker:
            run = start_run(prefect_server, recipe=str(recipe))
            until = time.monotonic() + PATIENCE
            while teacher.stats.billed_answers < 12:
                assert time.monotonic() < until, told(prefect_server, home)
                time.sleep(0.05)
            kill_all(worker.pid)
            worker.wait()
        before = teacher.stats.billed_answers
        assert before < len(prompts)
        crashed = wait_for_run(prefect_server, lambda one: one.id == run.id and one.state.is_final())
        assert crashed.state_name == "Crashed"
        assert "retry this run" in crashed.state.message
        with running_worker(prefect_server, home):
            command(prefect_server, home, "prefect", "flow-run", "retry", str(run.id))
            done = wait_for_run(prefect_server, lambda one: one.id == run.id and one.state.is_completed())
        assert done.run_count == 2
        assert set(teacher.stats.billed) == set(prompts)
        again = [prompt for prompt, count in teacher.stats.billed.items() if count > 1]
        assert len(again) <= 2  # what was in flight when it was killed


def test_one_machine_serves_the_same_definitions_without_a_pool(prefect_server: PrefectServer, home: Path) -> None:
    with (home / "serve.log").open("w") as output:
        arguments = ["stillhouse", "flows", "serve", "--only", "nightly", "--recipe", "words.yaml"]
        serving = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=home, env=prefect_server.environment, stdout=output, stderr=output
        )
    try:
        until = time.monotonic() + PATIENCE
        while (registered := ask(prefect_server, nightly)).work_pool_name is not None:
            assert time.monotonic() < until, (home / "serve.log").read_text()
            time.sleep(0.5)
        run = start_run(prefect_server)
        done = wait_for_run(prefect_server, lambda one: one.id == run.id and one.state.is_final())
        assert done.state_name == "Completed", done.state.message
        assert done.name == "label words v001"
    finally:
        serving.send_signal(signal.SIGINT)
        assert serving.wait(PATIENCE) == 130, (home / "serve.log").read_text()
    assert [(one.schedule.cron, one.schedule.timezone) for one in registered.schedules] == [("0 2 * * *", "Etc/UTC")]
    assert ask(prefect_server, nightly).paused


def test_a_run_that_was_taken_and_never_begun_has_crashed(prefect_server: PrefectServer) -> None:
    crashed = wait_for_run(prefect_server, lambda run: run.name == TAKEN and run.state.is_final())
    assert crashed.state_name == "Crashed"
    assert f"did not begin it within {NOT_BEGUN} seconds" in crashed.state.message
