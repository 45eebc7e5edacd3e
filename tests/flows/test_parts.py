"""A labelling job in parts, on a real work pool with two workers and on a real Ray cluster of two nodes; one is killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.store import Dataset, dataset_folder, open_dataset
from stillhouse.errors import WorkerLost
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.stages.stages import label_stage
from tests.conftest import MakeRecipe
from tests.flows import PREFECTS_WARNINGS
from tests.flows.conftest import ComposedServer, PrefectServer
from tests.flows.test_deployments import PATIENCE, ask, command, kill_all, running_worker
from tests.namesakes import add_namesakes, refuse_imported_namesakes
from tests.process_tree import processes
from tests.stand_in import Stats, running_stand_in

pytestmark = [pytest.mark.slow, PREFECTS_WARNINGS]

PROMPTS = [f"Name thing {number}." for number in range(48)]
RecipeFile = Callable[[Recipe], Path]


def in_parts(recipe: Recipe, kind: str, **runner: Any) -> Recipe:
    raw = recipe.model_dump(mode="json", by_alias=True)
    raw["label"]["runner"] = {"kind": kind, "workers": 2, "shards": 1, **runner}
    return recipe_from(raw, origin="test")


def until(happened: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def check(recipe: Recipe, stats: Stats, in_flight: int, prompts: Sequence[str] = PROMPTS) -> Dataset:
    """Every prompt labelled once; asked again at most what was in flight when something was killed."""
    dataset = open_dataset(dataset_folder(recipe.dataset))
    assert sum(dataset.manifest.rows.values()) == len(prompts)
    assert not dataset.problems()
    assert set(stats.billed) == set(prompts)
    assert stats.billed_answers - len(prompts) <= in_flight
    return dataset


def children(pid: int) -> list[int]:
    return [process.pid for process in processes() if process.parent == pid]


def online(server: PrefectServer) -> set[str]:
    """The names of the pool's workers that have said that they are there."""
    found = ask(server, lambda client: client.read_workers_for_work_pool("stillhouse"))
    return {worker.name for worker in found if worker.status.value == "ONLINE"}


def test_two_workers_share_a_job_that_is_stopped_and_goes_on_and_one_of_them_is_killed(
    composed_server: ComposedServer, tmp_path: Path, api_recipe: MakeRecipe, recipe_file: RecipeFile
) -> None:
    prompts = PROMPTS[:24]
    server = composed_server.from_outside()
    command(server, tmp_path, "stillhouse", "flows", "deploy", "--only", "part")
    command(server, tmp_path, "stillhouse", "flows", "guard", "--after", "60")
    with running_stand_in(latency=2.0, together=2) as teacher, ExitStack() as running:
        recipe = in_parts(api_recipe(teacher.base_url, prompts, concurrency=1, shard_size=4), "work-pool")
        names = ["parts-1", "parts-2"]
        workers = [
            running.enter_context(running_worker(server, tmp_path, "--limit", "1", "--name", name)) for name in names
        ]
        until(lambda: online(server) >= {*names})
        arguments = [sys.executable, "-m", "stillhouse", "label", str(recipe_file(recipe)), "--json"]

        def labelling(output: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
            return subprocess.Popen(arguments, cwd=tmp_path, env=server.environment, stdout=output)

        stopped = labelling(subprocess.DEVNULL)
        until(lambda: teacher.stats.most_at_once > 1)  # both are at work
        stopped.send_signal(signal.SIGINT)
        assert stopped.wait(PATIENCE) == 130
        until(lambda: not any(children(worker.pid) for worker in workers))  # its parts' runs are cancelled
        teacher.stats.most_at_once = 0
        going = labelling()
        try:
            until(lambda: teacher.stats.most_at_once > 1)  # both are again
            kill_all(workers[0].pid)
            workers[0].wait()
            assert teacher.stats.billed_answers < len(prompts) - 4
            said, _ = going.communicate(timeout=2 * PATIENCE)  # a worker alone, once the guard has missed the other
        finally:
            going.kill()
        assert going.returncode == 0
        assert json.loads(said)["sent"] <= len(prompts)
        dataset = check(recipe, teacher.stats, in_flight=1 + 2, prompts=prompts)
    assert not (dataset.folder.parent / "parts").exists()


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes with a core each, on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    soon_missed = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={**node, "_system_config": soon_missed})
    made.add_node(num_cpus=1, object_store_memory=100 << 20)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def test_a_ray_cluster_shares_a_job_and_one_of_its_nodes_is_killed(
    cluster: Any, tmp_path: Path, api_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_namesakes(tmp_path)
    monkeypatch.chdir(tmp_path)
    with running_stand_in(latency=1.0, together=2) as teacher:
        recipe = api_recipe(teacher.base_url, PROMPTS, concurrency=1, shard_size=8)
        recipe = in_parts(recipe, "ray", address=cluster.address)
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(lambda: asyncio.run(label_stage(recipe)))
            until(lambda: teacher.stats.most_at_once > 1 or going.done())  # both are at work
            (other,) = cluster.worker_nodes
            cluster.remove_node(other, allow_graceful=False)
            assert teacher.stats.billed_answers < len(PROMPTS) - 8
            result = going.result(PATIENCE)
        assert result.sent == len(PROMPTS)
        check(recipe, teacher.stats, in_flight=1)
    refuse_imported_namesakes(tmp_path)


def test_a_cluster_that_is_not_there_is_told_of(api_recipe: MakeRecipe) -> None:
    recipe = in_parts(api_recipe("http://127.0.0.1:1", PROMPTS), "ray", address="127.0.0.1:1")
    with pytest.raises(WorkerLost, match=r"label.runner.address is '127.0.0.1:1': no Ray cluster answers there"):
        asyncio.run(label_stage(recipe))
