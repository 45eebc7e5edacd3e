"""The labelling engine: nothing lost, nothing asked twice, and what is on disk can be read by anyone."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.store import dataset_folder, open_dataset, versions
from stillhouse.errors import DatasetBusy, PromptError, TeacherUnavailable
from stillhouse.labelling import engine
from stillhouse.labelling.engine import label, open_job
from stillhouse.labelling.journal import Journal
from stillhouse.labelling.plan import make_plan
from stillhouse.labelling.result import LabelResult
from stillhouse.recipe.recipe import Recipe
from stillhouse.teachers.base import Outcome, Request, Teacher, open_teacher
from stillhouse.teachers.scripted import ScriptedTeacher
from tests.conftest import WORDS, MakeRecipe
from tests.paths import ROOT


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Every request that reached any teacher of the test."""
    seen: list[Request] = []

    def opening(*arguments: Any) -> Teacher:
        teacher = open_teacher(*arguments)
        assert isinstance(teacher, ScriptedTeacher)
        teacher.asked = seen
        return teacher

    monkeypatch.setattr(engine, "open_teacher", opening)
    return seen


def run(recipe: Recipe) -> LabelResult:
    return asyncio.run(label(recipe))


def words_in(result: LabelResult) -> list[str]:
    rows = [
        completion_at(batch, index).prompt.text
        for split in ("train", "validation")
        for batch in result.dataset.batches(split)  # type: ignore[arg-type]
        for index in range(batch.num_rows)
    ]
    return sorted(text.removeprefix("Explain ").removesuffix(".") for text in rows)


def add_words(prompts: Path, *words: str) -> None:
    with prompts.open("a") as stream:
        for word in words:
            stream.write(json.dumps({"word": word, "reference": f"A {word} is a thing."}) + "\n")


def test_every_prompt_ends_as_one_row(scripted_recipe: MakeRecipe, asked: list[Request]) -> None:
    result = run(scripted_recipe())
    assert words_in(result) == sorted(WORDS)
    assert (result.sent, result.reused, len(asked)) == (12, 0, 12)
    manifest = result.dataset.manifest
    assert sum(manifest.rows.values()) == manifest.prompts == 12
    assert manifest.rejected == {}
    assert result.dataset.problems() == []


def test_running_again_sends_nothing_and_writes_nothing(scripted_recipe: MakeRecipe, asked: list[Request]) -> None:
    first = run(scripted_recipe())
    before = {file: file.stat().st_mtime_ns for file in first.dataset.folder.rglob("*")}
    second = run(scripted_recipe())
    assert (second.sent, second.reused) == (0, 12)
    assert second.dataset == first.dataset
    assert {file: file.stat().st_mtime_ns for file in first.dataset.folder.rglob("*")} == before
    assert len(asked) == 12


def test_shard_size_concurrency_and_limits_are_no_part_of_a_request(
    scripted_recipe: MakeRecipe, asked: list[Request]
) -> None:
    run(scripted_recipe())
    again = run(
        scripted_recipe(
            label={"shard_size": 3, "concurrency": 1, "soft": {"k": 8}, "limits": {"requests_per_minute": 5}}
        )
    )
    assert again.sent == 0
    assert len(versions(dataset_folder(scripted_recipe().dataset))) == 1


@pytest.mark.parametrize(
    "parts",
    [
        {"label": {"soft": {"k": 8}, "sampling": {"temperature": 0.1}}},
        {"label": {"soft": {"k": 4}}},
        {"label": {"soft": {"k": 8}, "mode": "score"}},
        {"teacher": {"kind": "scripted", "options": {"vocabulary": 65}}},
    ],
)
def test_what_shapes_an_answer_is_part_of_its_request(scripted_recipe: MakeRecipe, parts: dict[str, Any]) -> None:
    run(scripted_recipe())
    assert run(scripted_recipe(**parts)).sent == 12


def test_an_edited_prompt_file_sends_only_what_is_new(
    scripted_recipe: MakeRecipe, word_prompts: Path, asked: list[Request]
) -> None:
    run(scripted_recipe())
    lines = word_prompts.read_text().splitlines()
    word_prompts.write_text("\n".join(reversed(lines[1:])) + "\n")
    add_words(word_prompts, "anchor", "basket")
    second = run(scripted_recipe())
    assert (second.sent, second.reused) == (2, 11)
    assert second.dataset.manifest.label == "words/v002"
    assert second.dataset.manifest.parents == ("words/v001",)
    assert words_in(second) == sorted([*WORDS[1:], "anchor", "basket"])
    assert {request.prompt.text for request in asked[12:]} == {"Explain anchor.", "Explain basket."}


def test_a_mended_reference_sends_nothing_and_is_kept(scripted_recipe: MakeRecipe, word_prompts: Path) -> None:
    run(scripted_recipe())
    word_prompts.write_text(word_prompts.read_text().replace("A tram is a thing.", "A tram runs on rails."))
    second = run(scripted_recipe())
    assert second.sent == 0
    references = [
        completion_at(batch, index).prompt.reference
        for split in ("train", "validation")
        for batch in second.dataset.batches(split)  # type: ignore[arg-type]
        for index in range(batch.num_rows)
    ]
    assert "A tram runs on rails." in references


def test_samples_are_rows_of_their_own(scripted_recipe: MakeRecipe) -> None:
    run(scripted_recipe())
    result = run(scripted_recipe(label={"samples": 3, "soft": {"k": 8}, "shard_size": 5}))
    assert (result.sent, result.reused) == (24, 12)
    assert sum(result.dataset.manifest.rows.values()) == 36


def test_a_repeated_prompt_is_asked_once_and_counted(scripted_recipe: MakeRecipe, word_prompts: Path) -> None:
    add_words(word_prompts, "tram", "tram")
    result = run(scripted_recipe())
    assert (result.sent, result.dataset.manifest.duplicate_prompts) == (12, 2)


def test_refused_prompts_are_rejections_with_their_reason(scripted_recipe: MakeRecipe) -> None:
    result = run(
        scripted_recipe(teacher={"kind": "scripted", "options": {"vocabulary": 64, "refuse": ["Explain tram."]}})
    )
    assert result.dataset.manifest.rejected == {"refused": 1}
    assert result.rejected_share == pytest.approx(1 / 12)
    (entry,) = result.dataset.files("rejected")
    (row,) = pq.read_table(result.dataset.folder / entry.path).to_pylist()
    assert (row["stage"], row["reason"], row["attempts"]) == ("teacher", "refused", 1)
    assert row["completion"] is None


def test_a_filter_rejects_and_keeps_the_answer_and_a_looser_one_pays_nothing(scripted_recipe: MakeRecipe) -> None:
    strict = run(scripted_recipe(quality=[{"kind": "length", "max_tokens": 20}]))
    rejected = strict.dataset.manifest.rejected
    assert 0 < rejected["length"] < 12
    (first, *_) = strict.dataset.files("rejected")
    assert all(row["completion"] for row in pq.read_table(strict.dataset.folder / first.path).to_pylist())
    loose = run(scripted_recipe(quality=[]))
    assert (loose.sent, loose.dataset.manifest.rejected) == (0, {})
    assert words_in(loose) == sorted(WORDS)


class Failing:
    """A teacher that stops answering after some calls; `answered` counts the requests of those before."""

    def __init__(self, inner: Teacher, calls: int) -> None:
        self._inner, self._calls, self.answered = inner, calls, 0
        self.identity, self.batch_size, self.parallel, self.price = inner.identity, 2, 1, inner.price

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        self._calls -= 1
        if self._calls < 0:
            raise TeacherUnavailable("the teacher left")
        self.answered += len(requests)
        return await self._inner.answer(requests)

    async def close(self) -> None:
        pass


def test_a_teacher_that_leaves_costs_nothing_that_was_answered(
    scripted_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = scripted_recipe()
    teacher = Failing(open_teacher(recipe.teacher, recipe.label, recipe.seed), calls=3)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "open_teacher", lambda *_: teacher)
        with pytest.raises(TeacherUnavailable, match="the teacher left"):
            run(recipe)
    assert versions(dataset_folder(recipe.dataset)) == []
    assert 3 <= teacher.answered <= 6  # which shards came first is open, and so is how full their calls were
    result = run(recipe)
    assert (result.sent, result.reused) == (12 - teacher.answered, teacher.answered)
    assert words_in(result) == sorted(WORDS)


class FailingTwice(Failing):
    """The first request that it is `asked` fails, another one later, and the rest is answered later still."""

    def __init__(self, inner: Teacher) -> None:
        super().__init__(inner, calls=0)
        self.batch_size, self.parallel = 1, None
        self.has_failed = asyncio.Event()
        self.asked = 0

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        self.asked += 1
        place = self.asked
        await asyncio.sleep(0.05 * min(place, 3))  # all are under way by then
        if place < 3:
            self.has_failed.set()
            raise TeacherUnavailable("the teacher left")
        self.answered += 1
        return await self._inner.answer(requests)


def test_what_is_under_way_ends_even_where_another_shard_fails_meanwhile(
    scripted_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A shard that has failed waits for what it has sent, and is stopped while it waits."""
    recipe = scripted_recipe()
    teacher = FailingTwice(open_teacher(recipe.teacher, recipe.label, recipe.seed))

    async def stopped_twice() -> None:
        with open_job(recipe) as job:
            labelling = asyncio.create_task(job.label_shard(0))
            await teacher.has_failed.wait()
            await asyncio.sleep(0.01)
            labelling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await labelling
            await job.close()

    with monkeypatch.context() as patch:
        patch.setattr(engine, "open_teacher", lambda *_: teacher)
        asyncio.run(stopped_twice())
    gc.collect()
    assert "never retrieved" not in caplog.text
    assert teacher.answered == teacher.asked - 2 > 0
    result = run(recipe)
    assert (result.sent, result.reused) == (12 - teacher.answered, teacher.answered)


def test_prompts_edited_between_a_stop_and_the_next_run(
    scripted_recipe: MakeRecipe, word_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine, "open_teacher", lambda *arguments: Failing(open_teacher(*arguments), calls=5))
        with pytest.raises(TeacherUnavailable):
            run(scripted_recipe())
    lines = word_prompts.read_text().splitlines()
    word_prompts.write_text("\n".join(lines[::2]) + "\n")
    result = run(scripted_recipe())
    assert words_in(result) == sorted(WORDS[::2])
    assert result.dataset.problems() == []
    listed = {result.dataset.folder / entry.path for entry in result.dataset.manifest.files}
    assert set(result.dataset.folder.rglob("*.parquet")) == listed


def test_the_journal_forgets_what_a_version_holds(scripted_recipe: MakeRecipe) -> None:
    recipe = scripted_recipe()
    run(recipe)
    plan = make_plan(recipe, open_teacher(recipe.teacher, recipe.label, 0).identity)
    with Journal(dataset_folder(recipe.dataset), soft="top-k") as journal:
        assert journal.answered(list(plan.ids())) == set()


def test_a_second_writer_is_told_who_holds_the_dataset(scripted_recipe: MakeRecipe) -> None:
    with open_job(scripted_recipe()), pytest.raises(DatasetBusy, match=str(os.getpid())):
        run(scripted_recipe())


def test_wrong_prompts_write_nothing(scripted_recipe: MakeRecipe, word_prompts: Path) -> None:
    word_prompts.write_text('{"word": "a"}\n{"wrd": "b"}\n')
    with pytest.raises(PromptError):
        run(scripted_recipe())
    assert not dataset_folder(scripted_recipe().dataset).exists()


def test_scoring_needs_references(scripted_recipe: MakeRecipe, word_prompts: Path) -> None:
    word_prompts.write_text('{"word": "a"}\n')
    with pytest.raises(PromptError, match="so every row needs a reference"):
        run(scripted_recipe(label={"mode": "score", "soft": {"k": 4}}))


def test_the_secret_free_recipe_lies_beside_the_rows(scripted_recipe: MakeRecipe) -> None:
    result = run(scripted_recipe())
    assert (result.dataset.folder / "recipe.yaml").read_text() == scripted_recipe().as_yaml()


@pytest.mark.slow
@pytest.mark.parametrize("instant", [0.0, 0.15, 0.3, 0.5, 0.8])
def test_killed_at_any_instant_no_answer_is_lost_or_asked_twice(
    scripted_recipe: MakeRecipe,
    recipe_file: Callable[[Recipe], Path],
    word_prompts: Path,
    tmp_path: Path,
    instant: float,
) -> None:
    """A real process, a real SIGKILL; a slow teacher logs each request that it was asked."""
    add_words(word_prompts, *(f"word{n}" for n in range(60)))
    recipe = scripted_recipe(label={"shard_size": 10, "soft": {"k": 8}})
    asked = tmp_path / "asked.log"
    script = tmp_path / "label.py"
    script.write_text(
        "import asyncio, sys, time\n"
        "from stillhouse.recipe.load import load_recipe\n"
        "from stillhouse.labelling.engine import label\n"
        "from stillhouse.teachers.scripted import ScriptedTeacher\n"
        "plain = ScriptedTeacher._answer\n"
        "def slow(self, request):\n"
        "    with open(sys.argv[2], 'a') as log: log.write(request.key + '\\n')\n"
        "    time.sleep(0.01)\n"
        "    return plain(self, request)\n"
        "ScriptedTeacher._answer = slow\n"
        "print('ready', flush=True)\n"
        "print(asyncio.run(label(load_recipe(sys.argv[1]))).sent)\n"
    )
    command = [sys.executable, str(script), str(recipe_file(recipe)), str(asked)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(instant)
        process.send_signal(signal.SIGKILL)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    result = open_dataset(dataset_folder(recipe.dataset))
    assert sum(result.manifest.rows.values()) == 72
    assert result.problems() == []
    keys = asked.read_text().split()
    assert len(set(keys)) == 72
    assert len(keys) - 72 <= 64  # only what was in flight (label.concurrency) was asked again
