"""Deployments that write the same things run one at a time, with a work pool and without; parts run beside them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import WORDS
from tests.flows.conftest import PrefectServer
from tests.flows.test_deployments import PATIENCE, ask, command, kill_all, running_worker
from tests.stand_in import running_stand_in

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Prefect's own


@contextmanager
def serving(server: PrefectServer, folder: Path) -> Iterator[None]:
    """`stillhouse flows serve`."""
    run = [sys.executable, "-m", "stillhouse", "flows", "serve", "--recipe", "words.yaml"]
    with (folder / "serve.log").open("w") as output:
        process = subprocess.Popen(run, cwd=folder, env=server.environment, stdout=output, stderr=output)
    try:
        yield
    finally:
        kill_all(process.pid)
        process.wait()


@pytest.mark.parametrize("way", ["work pool", "serve"])
def test_two_deployments_of_one_recipe_take_turns(prefect_server: PrefectServer, tmp_path: Path, way: str) -> None:
    (tmp_path / "words.jsonl").write_text("".join(json.dumps({"prompt": word}) + "\n" for word in WORDS))
    with running_stand_in(latency=1.0) as stand_in:
        recipe = {
            "name": "words",
            "prompts": {"source": "words.jsonl"},
            "teacher": {"kind": "openai", "model": "stand-in", "options": {"base_url": stand_in.base_url}},
            "label": {"concurrency": 1},
            "dataset": {"root": "labels", "name": "words"},
        }
        (tmp_path / "words.yaml").write_text(yaml.safe_dump(recipe))
        command(prefect_server, tmp_path, "stillhouse", "flows", "deploy", "--recipe", "words.yaml")
        runner = running_worker(prefect_server, tmp_path) if way == "work pool" else serving(prefect_server, tmp_path)
        with runner:
            until = time.monotonic() + PATIENCE
            runs = {}
            while len(runs) < 2:  # once it serves them
                assert time.monotonic() < until
                runs = started(prefect_server, way)
            while not all(run.state.is_final() for run in runs.values()):
                assert time.monotonic() < until, {name: run.state for name, run in runs.items()}
                runs = {name: read(prefect_server, run.id) for name, run in runs.items()}
                time.sleep(0.5)
    spans = sorted((run.start_time, run.end_time) for run in runs.values())
    assert spans[0][1] <= spans[1][0], "the second began when the first had ended"
    assert runs["label/nightly"].state.is_completed(), runs["label/nightly"].state
    assert stand_in.stats.billed_answers == len(WORDS), "each is asked once"


def started(server: PrefectServer, way: str) -> dict[str, Any]:
    """A run of each of two deployments, both due now; none until the deployments are as they are to be."""

    async def question(client: Any) -> dict[str, Any]:
        names = ("label/nightly", "run/on-demand")
        deployments = {name: await client.read_deployment_by_name(name) for name in names}
        if any((one.work_pool_name is None) != (way == "serve") for one in deployments.values()):
            return {}
        return {name: await client.create_flow_run_from_deployment(one.id) for name, one in deployments.items()}

    return dict(ask(server, question))


def read(server: PrefectServer, run: Any) -> Any:
    return ask(server, lambda client: client.read_flow_run(run))
