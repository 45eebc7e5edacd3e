"""The services of docker/compose.yaml on a real PostgreSQL: what a kill of each leaves, and where no secret may be found.

The tests run in the order they stand in, and share one server and one worker. The worker has one key in its environment,
and another lies in a Secret block.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from stillhouse.errors import RecipeError
from stillhouse.recipe.recipe import Recipe
from tests import compose
from tests.conftest import MakeRecipe
from tests.flows import PREFECTS_WARNINGS
from tests.flows.conftest import ComposedServer
from tests.flows.test_deployments import GONE, kill_all
from tests.ports import free_ports
from tests.stand_in import RunningStandIn, running_stand_in
from tests.test_secrets import holding

pytestmark = [pytest.mark.slow, PREFECTS_WARNINGS]

KEY = "sk-live-1c09be5a-in-the-environment"
BLOCK_KEY = "sk-live-e77d30f2-in-a-block"
BLOCK = "teacher-key"
# As docs/operations.md has it.
MAKE_BLOCK = (
    f"import os; from prefect.blocks.system import Secret; Secret(value=os.environ['TEACHER_KEY']).save('{BLOCK}')"
)
TELLING = "Name a bird. !key400*"  # the server says the key back, and the prompt is rejected


class Worker:
    """The service `worker`; `start` and `kill` as often as wanted."""

    def __init__(self, server: ComposedServer, folder: Path) -> None:
        (port,) = free_ports(1)
        self.health = f"http://127.0.0.1:{port}/health"
        self._command = compose.command_of(server.services["worker"])
        self._folder = folder
        self._log = server.home / "worker.log"
        quickly = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
        loudly = {"PREFECT_LOGGING_LEVEL": "DEBUG"}
        self._environment = server.environment("worker", OPENAI_API_KEY=KEY, **quickly, **loudly)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("a") as output:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=self._environment, stdout=output, stderr=output
            )

    def kill(self) -> None:
        """SIGKILL, and for its runs too."""
        if self._process is not None:
            kill_all(self._process.pid)
            self._process.wait()


@dataclass(frozen=True)
class Job:
    """What is deployed, and a client of the server that knows its password."""

    server: ComposedServer
    folder: Path
    worker: Worker
    api: httpx.Client

    def deploy(self) -> str:
        """What the service prints, which ends."""
        return self._told(compose.command_of(self.server.services["deploy"]))

    def command(self, *arguments: str) -> str:
        """What `python -m ...` prints."""
        return self._told([sys.executable, "-m", *arguments])

    def _told(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.server.environment("deploy", STILLHOUSE_SECRETS=f"TEACHER_KEY={BLOCK}"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_run(self, recipe: Path) -> str:
        """The id of a run of label/nightly that is due now."""
        nightly = self.api.get("/deployments/name/label/nightly").raise_for_status().json()["id"]
        body = {"parameters": {"recipe": str(recipe)}, "state": {"type": "SCHEDULED"}}
        run = self.api.post(f"/deployments/{nightly}/create_flow_run", json=body).raise_for_status()
        return str(run.json()["id"])

    def wait_for(self, run: str, seconds: float = 240) -> dict[str, Any]:
        """The run, once it has ended."""
        until = time.monotonic() + seconds
        while True:
            found: dict[str, Any] = self.api.get(f"/flow_runs/{run}").raise_for_status().json()
            if found["state_type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}:
                return found
            assert time.monotonic() < until, (found["state"], self.logs())
            time.sleep(0.5)

    def running(self) -> list[str]:
        """The names of runs that are said to run."""
        wanted = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}}
        return [run["name"] for run in self.api.post("/flow_runs/filter", json=wanted).raise_for_status().json()]

    def logs(self) -> str:
        return "".join(f"\n{log}:\n{log.read_text()[-4000:]}" for log in self.server.home.glob("*.log"))


@contextmanager
def known(server: ComposedServer) -> Iterator[None]:
    """Prefect's client in this process speaks to the server."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.url, PREFECT_API_AUTH_STRING: ":".join(server.user)}):
        yield


@pytest.fixture(scope="module")
def job(composed_server: ComposedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """A Secret block, `deploy`, then `worker`, in a folder of their own."""
    folder = tmp_path_factory.mktemp("work")
    with httpx.Client(base_url=composed_server.url, auth=composed_server.user, timeout=30) as api:
        job = Job(composed_server, folder, Worker(composed_server, folder), api)
        with known(composed_server), pytest.MonkeyPatch.context() as patch:
            patch.setenv("TEACHER_KEY", BLOCK_KEY)
            exec(MAKE_BLOCK)
        assert "deployed label/nightly" in job.deploy()
        job.worker.start()
        try:
            yield job
        finally:
            job.worker.kill()


def until_true(happened: Callable[[], bool], job: Job) -> None:
    until = time.monotonic() + 180
    while not happened():
        assert time.monotonic() < until, job.logs()
        time.sleep(0.05)


def wait_for_answers(teacher: RunningStandIn, count: int, job: Job) -> None:
    until_true(lambda: teacher.stats.billed_answers >= count, job)


def test_the_server_asks_for_its_password(composed_server: ComposedServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{composed_server.url}/version", timeout=30)
    assert composed_server.database.ask("SELECT count(*) FROM flow_run") == "0\n"


@pytest.mark.parametrize(
    ("killed", "options", "key"),
    [("server", None, KEY), ("database", {"api_key_env": "TEACHER_KEY"}, BLOCK_KEY)],
)
def test_a_run_goes_on_when_the_server_or_its_database_is_killed_and_comes_back(
    job: Job,
    api_recipe: MakeRecipe,
    recipe_file: Callable[[Recipe], Path],
    tmp_path: Path,
    killed: str,
    options: dict[str, Any] | None,
    key: str,
) -> None:
    prompts = [f"Name thing {number} of the {killed}." for number in range(60)]
    with running_stand_in(latency=0.3) as teacher:
        recipe = api_recipe(teacher.base_url, [*prompts, TELLING], options=options, concurrency=2, shard_size=10)
        run = job.start_run(recipe_file(recipe))
        wait_for_answers(teacher, 12, job)
        if killed == "server":
            job.server.process.kill()
            job.server.process.start()
        else:
            job.server.database.stop_immediately()
            wait_for_answers(teacher, 20, job)  # it labels on
            job.server.database.start()
        ended = job.wait_for(run)
        assert ended["state_type"] == "COMPLETED", (ended["state"], job.logs())
        assert job.running() == []
        assert urllib.request.urlopen(job.worker.health, timeout=30).status == 200
        assert set(teacher.stats.billed) == set(prompts)
        assert teacher.stats.billed_answers == len(prompts)  # none twice
        assert teacher.stats.keys == {f"Bearer {key}"}
    (version,) = Path(recipe.dataset.root, recipe.dataset.name).glob("v*")
    assert sum(json.loads((version / "manifest.json").read_text())["rows"].values()) == len(prompts)
    assert holding(tmp_path, key) == []


def test_a_power_cut_and_a_database_from_its_copy_and_a_retry_goes_on(
    job: Job, api_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    prompts = [f"Name thing {number} of the cut." for number in range(60)]
    database = job.server.database
    job.command("stillhouse", "flows", "guard", "--after", str(GONE))
    with running_stand_in(latency=0.5) as teacher:
        run = job.start_run(recipe_file(api_recipe(teacher.base_url, prompts, concurrency=2, shard_size=10)))
        wait_for_answers(teacher, 20, job)
        until_true(lambda: database.ask("SELECT count(*) FROM automation_bucket") != "0\n", job)  # it lives
        copy = database.dump()
        job.worker.kill()
        job.server.process.kill()
        database.stop_immediately()
        assert teacher.stats.billed_answers < len(prompts)
        database.start()
        database.restore(copy)
        job.server.process.start()
        crashed = job.wait_for(run)
        assert crashed["state_type"] == "CRASHED", (crashed["state"], job.logs())
        assert "retry this run" in crashed["state"]["message"]
        assert job.running() == []
        job.worker.start()
        job.command("prefect", "flow-run", "retry", run)
        done = job.wait_for(run)
        assert done["state_type"] == "COMPLETED", (done["state"], job.logs())
        assert set(teacher.stats.billed) == set(prompts)
        assert teacher.stats.billed_answers - len(prompts) <= 2  # what was in flight


def test_no_secret_is_in_the_database_the_logs_or_any_other_file(job: Job) -> None:
    dump = job.server.database.dump()
    assert "Labelling: 0 of 61" in dump and f"prefect.blocks.secret.{BLOCK}" in dump  # logs and deployments are there
    for secret in (KEY, BLOCK_KEY, job.server.user[1], job.server.database.password):
        assert secret not in dump
        assert holding(job.server.home, secret) == holding(job.folder, secret) == []


def test_a_block_that_is_not_there_is_named(composed_server: ComposedServer) -> None:
    from prefect.client.orchestration import get_client

    from stillhouse_flows.keys import check_blocks

    async def check(block: str) -> None:
        async with get_client() as client:
            await check_blocks(client, {"TEACHER_KEY": block})

    with known(composed_server):
        asyncio.run(check(BLOCK))
        with pytest.raises(RecipeError, match="--secret is 'TEACHER_KEY=teachers-key': the server has no Secret block"):
            asyncio.run(check("teachers-key"))


@pytest.mark.parametrize("given", ["OPENAI_API_KEY", "sk-live-55", "OPENAI_API_KEY=sk_live_55", "A-B=c", "A=b c"])
def test_what_names_no_block_is_refused_and_not_repeated(given: str) -> None:
    from stillhouse_flows.keys import parse_secrets

    assert parse_secrets(["A_KEY=a-block", "B=b2"]) == {"A_KEY": "a-block", "B": "b2"}
    with pytest.raises(RecipeError, match="VARIABLE=BLOCK") as told:
        parse_secrets(["A_KEY=a-block", given])
    assert given not in str(told.value) or given == "OPENAI_API_KEY"
