"""Several processes that the flow starts: they end with it, however it ends, and the next run finishes what they began."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch

from stillhouse.errors import RecipeError, TrainingError
from stillhouse.labelling.engine import label
from stillhouse.recipe.load import load_recipe
from stillhouse.stages.checks import student_of
from stillhouse.stages.stages import distill_stage, recipe_dataset
from tests.conftest import WORDS, make_tiny_model
from tests.flows import PREFECTS_WARNINGS
from tests.process_tree import Process, processes
from tests.student.training.test_distributed import ONE, ROOT, TWO, trained, written

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
    PREFECTS_WARNINGS,
]

OFTEN = {"num_train_epochs": 8, "learning_rate": 0.0005, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_tiny_model(tmp_path / "tiny")
    rows = [{"prompt": f"Explain {word} {number}."} for number, word in enumerate(WORDS * 2)]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asyncio.run(label(load_recipe(written(tmp_path, "labels", {}))))
    return tmp_path


def started(recipe: Path) -> list[Process]:
    """What trains for a recipe: the launcher and all that it started."""
    return [one for one in processes() if f"{recipe.with_suffix('')}/" in one.command]


def own_process(*command: str) -> "subprocess.Popen[str]":
    """Python in a process of its own, with the tests' Prefect API."""
    from prefect.settings import PREFECT_API_URL

    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value() or "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def last_saved(recipe: Path) -> int:
    """The last step of which there is a whole checkpoint."""
    names = [file.parent.name for file in recipe.with_suffix("").glob("test/.work-white-box-*/checkpoint-*/whole*")]
    return max((int(name.rpartition("-")[2]) for name in names), default=0)


async def log_of(flow_name: str) -> list[str]:
    """The lines in the run log of a flow's newest run, once its end is among them."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, LogFilter, LogFilterFlowRunId
    from prefect.client.schemas.sorting import FlowRunSort, LogSort

    async def lines(client: Any, run: UUID) -> list[str]:
        chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
        return [one.message for one in await client.read_logs(chosen, sort=LogSort.TIMESTAMP_ASC)]

    async with get_client() as client:
        only = FlowFilter(name=FlowFilterName(any_=[flow_name]))
        (run,) = await client.read_flow_runs(flow_filter=only, sort=FlowRunSort.START_TIME_DESC, limit=1)
        for _ in range(60):  # they reach the server through a queue
            found = await lines(client, run.id)
            if any("trained" in line for line in found):
                return found
            await asyncio.sleep(0.5)
    raise AssertionError(f"the log of {flow_name} never came: {found}")


def test_killed_with_its_processes_the_flow_goes_on_to_the_student_of_one_process(place: Path) -> None:
    from stillhouse_flows.distill import distill_flow

    recipe = written(place, "two", {"launch": {"num_processes": 2}}, TWO | OFTEN)
    flow = own_process("-m", "stillhouse", "distill", str(recipe), "--flow")
    while (saved := last_saved(recipe)) < 2 and flow.poll() is None:
        time.sleep(0.02)
    assert len(started(recipe)) >= 4  # bound_child.py, the launcher and the two
    flow.kill()
    log, _ = flow.communicate()  # the launched processes hold no end of it
    assert saved >= 2, log
    while started(recipe):  # nobody ends them: they notice
        time.sleep(0.05)
    (result,) = distill_flow(str(recipe))
    assert result.trained
    run_log = asyncio.run(log_of("distill"))
    told = [line for line in run_log if line.startswith("Training the white-box student: ")]
    steps = result.card.steps
    assert saved < int(told[0].split()[-3]) <= steps
    assert told[-1] == f"Training the white-box student: {steps} of {steps}"
    assert not [line for line in run_log if "Traceback" in line]

    alone = load_recipe(written(place, "one", {}, ONE | OFTEN))
    distill_stage(alone, student_of(alone), recipe_dataset(alone))
    (one, weights), (two, others) = trained(alone), trained(load_recipe(recipe))
    assert one.key != two.key  # by the rows of a step, as they are named; `launch` is no part of it
    assert one.steps == two.steps
    assert weights.keys() == others.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(weight, others[key], rtol=0, atol=1e-4, msg=f"{key} is another")


FLOW = """
import os, sys
from prefect import flow, task
from stillhouse.processes import ranks
from stillhouse.processes.supervised import SupervisedProcess
from stillhouse.stages import launch
from stillhouse.cli.common import reporting_errors

@task(retries=1)
def train():
    environment = {ranks.LAUNCH: sys.argv[1]}
    with SupervisedProcess([sys.executable, "-c", sys.argv[2], sys.argv[1]], environment) as process:
        for line in process.lines():
            print(line, flush=True)

@flow
def training():
    train()

with reporting_errors():
    training()
"""
LAUNCHER = """
import subprocess, sys
training = "from stillhouse.processes.ranks import *; import time; end_with_launcher(); "
training += "print('training', flush=True); time.sleep(9e3)"
subprocess.Popen([sys.executable, "-c", training, sys.argv[1]], start_new_session=True).wait()
"""


def test_a_flow_that_is_stopped_ends_its_processes_first(tmp_path: Path) -> None:
    """A launcher that hands no signal on: what it started, in a session of its own as by torch, ends all the same."""
    flow = own_process("-c", FLOW, str(tmp_path), LAUNCHER)
    assert flow.stdout is not None
    while (line := flow.stdout.readline()) != "training\n":
        assert line, "it ended by itself"
    assert (
        len([one for one in processes() if str(tmp_path) in one.command]) == 4
    )  # the flow, bound_child.py, and the two
    flow.terminate()
    log, _ = flow.communicate()
    assert "Execution was aborted by a termination signal" in log
    assert [one for one in processes() if str(tmp_path) in one.command] == []


def test_what_the_recipe_says_wrongly_is_not_tried_again() -> None:
    from prefect.states import Failed

    from stillhouse_flows.common import retry_unless_usage_error
    from stillhouse_flows.distill import train_student

    task: Any = train_student
    run: Any = None
    assert not retry_unless_usage_error(task, run, Failed(data=RecipeError("wrong")))
    assert retry_unless_usage_error(task, run, Failed(data=TrainingError("a process failed")))
