"""Rounds whose student writes on a vLLM server of its own, and whose teacher scores on another."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.stages import distill_students
from stillhouse.teachers.serving.vllm_server import VllmServer
from tests.stages.rounds.test_rounds import rollouts
from tests.vllm.conftest import SERVE


def test_the_student_writes_on_a_server_that_takes_its_weights(
    server: VllmServer, vllm_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = vllm_recipe(
        {"base_urls": [server.base_url]},
        student={
            "init": {"from": "teacher", "layers": 2, "choose": "even"},
            "train": {"max_steps": 1, "per_device_train_batch_size": 2},
        },
        on_policy={
            "rounds": 2,
            "prompts": 4,
            "sampling": {"temperature": 1.0, "max_tokens": 8},
            "writer": {"kind": "vllm", "options": {"serve": SERVE.model_dump()}},
            "train": {"max_steps": 1},
        },
        evaluate={"baselines": []},
    )
    asyncio.run(label(recipe))
    *_, last = distill_students(recipe)
    assert [one.number for one in last.card.rounds] == [1, 2]
    for number in (1, 2):
        (file,) = (Path(recipe.students) / f"test/rounds/round-00{number}").glob("rollouts-*/rollouts.parquet")
        written = {tuple(row["token_ids"]) for row in pq.read_table(file).to_pylist()}
        scored = rollouts(recipe, number).to_table("train")["completion_token_ids"].to_pylist()
        assert {tuple(ids) for ids in scored} == written
