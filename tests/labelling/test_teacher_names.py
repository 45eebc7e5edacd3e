"""Answers of a vLLM teacher that this version stored are found under each of its names, also in a stopped run's journal.

What an earlier version stored: test_former_names.py.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stillhouse.errors import TeacherUnavailable
from stillhouse.labelling.engine import LabelResult, label
from stillhouse.labelling.estimate import estimate_labelling
from stillhouse.progress import Progress
from stillhouse.recipe.overrides import with_overrides
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.teachers.base import Answer, AnswerSettings, Request, open_teacher
from stillhouse.teachers.vllm import VllmTeacher
from tests.paths import ROOT

RUNNING = {"base_urls": ["http://127.0.0.1:9/v1"]}
NO_PARITY = "teacher.options.check={parity: false}"
WEIGHTS, ELSEWHERE = Path("model/model.safetensors"), Path("elsewhere.safetensors")


class Server:
    """Stands in for the servers of every vLLM teacher: it keeps the requests, and can leave after some of them."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.leaves_after: int | None = None

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        if self.leaves_after is not None and len(self.asked) >= self.leaves_after:
            raise TeacherUnavailable("the server left")
        self.asked.extend(requests)
        return [Answer(f"answer {len(self.asked)}", "stop", 3, 3) for _ in requests]


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A working folder with a model and six prompts, and a server for every vLLM teacher."""
    for name in ("model", "words.jsonl", "words.j2"):
        source = ROOT / "tests/release_0_1" / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path)
    monkeypatch.chdir(tmp_path)
    server = Server()

    async def answer(self: VllmTeacher, requests: Sequence[Request]) -> list[Answer]:
        return await server.answer(requests)

    async def prepare(self: VllmTeacher, progress: Progress) -> None:
        """There is nothing to check."""

    monkeypatch.setattr(VllmTeacher, "answer", answer)
    monkeypatch.setattr(VllmTeacher, "prepare", prepare)
    return server


def recipe_of(options: dict[str, Any], *overrides: str) -> Recipe:
    plain = {
        "name": "words",
        "prompts": {"source": "words.jsonl", "template": "words.j2", "holdout": 0.3},
        "teacher": {"kind": "vllm", "model": "model", "options": options},
        "label": {"shard_size": 2, "concurrency": 1, "sampling": {"temperature": 0, "max_tokens": 6}},
        "dataset": {"root": "labels", "name": "words"},
    }
    return recipe_from(with_overrides(plain, overrides), "test")


def labelled(options: dict[str, Any], *overrides: str) -> LabelResult:
    """Label, and check that `plan` predicted what is sent."""
    recipe = recipe_of(options, *overrides)
    predicted = estimate_labelling(recipe).to_send
    result = asyncio.run(label(recipe))
    assert result.sent == predicted
    return result


def rows(version: str) -> dict[str, dict[str, Any]]:
    """A version's rows, by prompt."""
    files = sorted(Path("labels/words", version, "data").glob("*.parquet"))
    return {row["prompt_id"]: row for file in files for row in pq.read_table(file).to_pylist()}


def add_prompt() -> None:
    with Path("words.jsonl").open("a") as file:
        file.write(json.dumps({"word": "tram", "reference": "A tram is a thing."}) + "\n")


def edit_weights() -> None:
    """Change one bit of the weights."""
    content = bytearray(WEIGHTS.read_bytes())
    content[-1] ^= 1
    WEIGHTS.write_bytes(content)


def test_the_keys_are_those_of_version_0_1() -> None:
    for overrides in ([], [NO_PARITY]):
        recipe = recipe_of(RUNNING, *overrides)
        teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
        settings = AnswerSettings.from_label(teacher.identity, recipe.label)
        assert settings.id == "d10b225f41f4f39a5c13144bb085540d"


def test_rows_that_are_reused_get_the_current_keys() -> None:
    WEIGHTS.rename(ELSEWHERE)
    assert labelled(RUNNING, NO_PARITY).sent == 6
    ELSEWHERE.rename(WEIGHTS)
    add_prompt()
    result = labelled(RUNNING)
    assert (result.sent, result.reused, result.dataset.manifest.parents) == (1, 6, ("words/v001",))
    before, after = rows("v001"), rows("v002")
    assert len(after) == 7
    for prompt, row in before.items():
        assert after[prompt] | {"id": None} == row | {"id": None}
        assert after[prompt]["id"] != row["id"]
    recipe = recipe_of(RUNNING)
    settings = AnswerSettings.from_label(open_teacher(recipe.teacher, recipe.label, recipe.seed).identity, recipe.label)
    assert all(row["id"] == settings.key(prompt, 0, None) for prompt, row in after.items())
    assert labelled(RUNNING).fresh is False


def test_answers_in_the_journal_of_a_stopped_run_are_found(server: Server) -> None:
    WEIGHTS.rename(ELSEWHERE)
    server.leaves_after = 2
    with pytest.raises(TeacherUnavailable, match="the server left"):
        asyncio.run(label(recipe_of(RUNNING, NO_PARITY)))
    server.leaves_after = None
    ELSEWHERE.rename(WEIGHTS)
    result = labelled(RUNNING)
    assert (result.sent, result.reused) == (4, 2)
    assert labelled(RUNNING).fresh is False


@pytest.mark.parametrize(("dtype", "sent"), [("auto", 4), ("float32", 6)])
def test_answers_in_a_journal_count_for_how_their_server_computed(server: Server, dtype: str, sent: int) -> None:
    """A server with the defaults has the name of one that was running, and then another recipe ran in between."""
    server.leaves_after = 2
    for options in ({"serve": {"dtype": "auto"}}, {"serve": {"dtype": "float16"}}):
        with pytest.raises(TeacherUnavailable):
            asyncio.run(label(recipe_of(options)))
    server.leaves_after = None
    assert labelled({"serve": {"dtype": dtype}}).sent == sent


@pytest.mark.parametrize("finished", [True, False])
def test_weights_that_are_edited_once_a_name_was_used_are_another_teacher(
    server: Server, caplog: pytest.LogCaptureFixture, finished: bool
) -> None:
    """Whether the name was used in a finished version or in the journal of a stopped run."""

    def warnings() -> list[str]:
        return [one.getMessage() for one in caplog.records if "earlier name" in one.getMessage()]

    WEIGHTS.rename(ELSEWHERE)
    if finished:
        assert labelled(RUNNING, NO_PARITY).sent == 6
    else:
        server.leaves_after = 2
        with pytest.raises(TeacherUnavailable):
            asyncio.run(label(recipe_of(RUNNING, NO_PARITY)))
        server.leaves_after = None
    assert warnings() == []
    ELSEWHERE.rename(WEIGHTS)
    assert labelled(RUNNING).sent == (0 if finished else 4)
    (warning,) = warnings()
    start = "words/v001" if finished else "the journal of labels/words"
    assert warning.startswith(f"{start}: the answers are stored under an earlier name")
    assert labelled(RUNNING).sent == 0
    assert len(warnings()) == 1, "it is logged once"
    original = WEIGHTS.read_bytes()
    edit_weights()
    assert labelled(RUNNING).sent == 6
    WEIGHTS.write_bytes(original)
    assert labelled(RUNNING).sent == 0
