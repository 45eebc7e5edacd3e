"""Labelling streams: shards side by side and written in order, whatever fails, and with memory for the open ones alone."""

import asyncio
import json
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.dataset.files import ShardFiles
from stillhouse.dataset.store import Dataset, dataset_folder
from stillhouse.errors import PromptError, StorageFailed, TeacherUnavailable
from stillhouse.labelling import engine
from stillhouse.labelling.engine import label, open_job
from stillhouse.labelling.plan import make_plan
from stillhouse.labelling.result import LabelResult
from stillhouse.quality.base import NamedFilter
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.records import Completion
from stillhouse.teachers.base import Outcome, Request, Teacher, open_teacher

Wrapper = Callable[[Callable[[int], Awaitable[None]]], Callable[[int], Awaitable[None]]]
MakeStream = Callable[..., Recipe]


@pytest.fixture
def stream(tmp_path: Path) -> MakeStream:
    """Makes recipes of so many prompts and a scripted teacher; keyword arguments are settings of `label`."""

    def make(prompts: int = 20, source: str = "prompts.jsonl", holdout: float = 0.0, **label_parts: Any) -> Recipe:
        rows = [{"prompt": f"Question {n}, {'very ' * (n % 7)}long?", "reference": str(n)} for n in range(prompts)]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        path = str(tmp_path / source) if "." in source else source
        return recipe_from(
            {
                "name": "stream",
                "prompts": {"source": path, "holdout": holdout},
                "teacher": {"kind": "scripted", "options": {"batch_size": 1}},
                "label": {"shard_size": 4, "concurrency": 4, **label_parts},
                "dataset": {"root": str(tmp_path / "labels"), "name": "stream"},
            },
            "test",
        )

    return make


class Around:
    """A scripted teacher with something done before each answer; `answered` is what it answered."""

    def __init__(self, inner: Teacher, before: Callable[[int], Awaitable[None]]) -> None:
        self._inner, self._before = inner, before
        self.answered: list[int] = []
        self.identity, self.batch_size, self.parallel, self.price = inner.identity, 1, None, inner.price

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        (request,) = requests
        await self._before(int(request.prompt.reference or 0))
        self.answered.append(int(request.prompt.reference or 0))
        return await self._inner.answer(requests)

    async def close(self) -> None:
        pass


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Awaitable[None]]], list[int]]:
    """Does something before each answer of every teacher from now on, given its prompt's number."""

    def install(before: Callable[[int], Awaitable[None]]) -> list[int]:
        answered: list[int] = []

        def opening(*arguments: Any) -> Teacher:
            teacher = Around(open_teacher(*arguments), before)
            teacher.answered = answered
            return teacher

        monkeypatch.setattr(engine, "open_teacher", opening)
        return answered

    return install


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of shards in the order in which they were written."""
    names: list[str] = []
    write = ShardFiles.write

    def noting(self: ShardFiles, *tables: Any) -> None:
        write(self, *tables)
        names.append(self.name)

    monkeypatch.setattr(ShardFiles, "write", noting)
    return names


async def nothing(_: int) -> None:
    await asyncio.sleep(0)


def leaving_after(calls: int) -> Callable[[int], Awaitable[None]]:
    left = [calls]

    async def leave(_: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise TeacherUnavailable("the teacher left")
        await asyncio.sleep(0)

    return leave


def run(recipe: Recipe) -> LabelResult:
    return asyncio.run(label(recipe))


async def run_wrapped(recipe: Recipe, wrapper: Wrapper, told: list[int] | None = None) -> LabelResult:
    """As a flow does it: every shard through a wrapper."""
    progress = (lambda _what, done, _of: told.append(done)) if told is not None else (lambda *_: None)
    with open_job(recipe, progress) as job:
        try:
            await job.run(wrapper(job.label_shard))
        finally:
            await job.close()
        return job.commit()


def retrying(label_shard: Callable[[int], Awaitable[None]]) -> Callable[[int], Awaitable[None]]:
    async def thrice(number: int) -> None:
        for attempt in range(3):
            try:
                return await label_shard(number)
            except (StorageFailed, TeacherUnavailable):
                if attempt == 2:
                    raise
                await asyncio.sleep(0.01)
        return None

    return thrice


def numbers(dataset: Dataset, kind: str = "data") -> list[int]:
    """The prompts' numbers, in the order of the rows."""
    return [
        int(row["reference"])
        for file in sorted((dataset.folder / kind).glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]


# ---------------------------------------------------------------------------------------------------------- side by side


@pytest.mark.parametrize(
    ("refusals", "beside"), [(None, 4), (5, 10)], ids=["no streak", "a streak of refusals fits in"]
)
def test_shards_behind_a_slow_one_are_asked_and_wait_to_be_written(
    refusals: int | None, beside: int, stream: MakeStream, around: Any, written: list[str]
) -> None:
    """Of 2 prompts a shard: twice the requests at once, or twice a streak of refusals where that is more."""
    released = asyncio.Event()

    async def first_shard_hangs(number: int) -> None:
        if number < 2:
            await released.wait()

    answered = around(first_shard_hangs)

    async def watch() -> None:
        while len(answered) < 2 * beside:
            await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert sorted(answered) == list(range(2, 2 + 2 * beside))
        assert written == []
        released.set()

    recipe = stream(30, shard_size=2, concurrency=4, refusals_in_a_row=refusals)

    async def both() -> LabelResult:
        result, _ = await asyncio.wait_for(asyncio.gather(label(recipe), watch()), timeout=20)
        return result

    result = asyncio.run(both())
    assert written == [f"train-{n:05d}-of-00015.parquet" for n in range(15)]
    assert numbers(result.dataset) == list(range(30))


@pytest.mark.parametrize(("shard_size", "concurrency", "samples"), [(1, 64, 1), (3, 1, 2), (100, 5, 1), (7, 64, 3)])
def test_rows_come_in_the_order_of_the_prompts_however_the_work_is_cut(
    stream: MakeStream, around: Any, shard_size: int, concurrency: int, samples: int
) -> None:
    async def later_ones_first(number: int) -> None:
        for _ in range(20 - number):
            await asyncio.sleep(0)

    around(later_ones_first)
    recipe = stream(20, shard_size=shard_size, concurrency=concurrency, samples=samples)
    assert numbers(run(recipe).dataset) == [number for number in range(20) for _ in range(samples)]


def test_threads_that_read_shards_at_once_get_each_its_own(stream: MakeStream) -> None:
    recipe = stream(400, shard_size=2)
    teacher = open_teacher(recipe.teacher, recipe.label, 0)
    with make_plan(recipe, teacher.identity) as plan, ThreadPoolExecutor(8) as pool:
        for shard in pool.map(plan.shard, [*range(200)] * 5):
            assert [request.prompt.reference for request in shard.requests] == [
                str(2 * shard.number),
                str(2 * shard.number + 1),
            ]


# ---------------------------------------------------------------------------------------------------------- what fails


class FailingWrites:
    """Writing of the shards with these indices fails, each so many times."""

    def __init__(self, patch: pytest.MonkeyPatch, failures: dict[int, int]) -> None:
        write = ShardFiles.write

        def failing(files: ShardFiles, *tables: Any) -> None:
            if failures.get(files.index, 0):
                failures[files.index] -= 1
                raise StorageFailed("the disk is full")
            write(files, *tables)

        patch.setattr(ShardFiles, "write", failing)


def test_a_shard_that_fails_stops_all_and_loses_nothing(
    stream: MakeStream, around: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = around(nothing)
    with monkeypatch.context() as patch:
        FailingWrites(patch, {1: 1})
        with pytest.raises(StorageFailed, match="the disk is full"):
            run(stream())
    folder = dataset_folder(stream().dataset) / "v001"
    assert [file.name for file in (folder / "data").iterdir()] == ["train-00000-of-00005.parquet"]
    before = len(answered)
    result = run(stream())
    assert (result.sent, result.reused) == (20 - before, before)
    assert max(Counter(answered).values()) == 1
    assert numbers(result.dataset) == list(range(20))


@pytest.mark.parametrize("failures", [{0: 1}, {1: 2, 3: 1}, {4: 1}])
def test_a_wrapper_may_try_a_shard_again_that_could_not_be_written(
    stream: MakeStream, around: Any, monkeypatch: pytest.MonkeyPatch, failures: dict[int, int]
) -> None:
    answered, told = around(nothing), []  # type: ignore[var-annotated]
    FailingWrites(monkeypatch, failures)
    result = asyncio.run(asyncio.wait_for(run_wrapped(stream(), retrying, told), timeout=20))
    assert Counter(answered) == dict.fromkeys(range(20), 1)
    assert numbers(result.dataset) == list(range(20))
    assert told == sorted(told) and told[-1] == 20


def test_a_wrapper_may_try_a_shard_again_whose_teacher_failed_while_the_others_go_on(
    stream: MakeStream, around: Any
) -> None:
    troubles = {2, 9, 18}

    async def fails_once(number: int) -> None:
        await asyncio.sleep(0)
        if number in troubles:
            troubles.discard(number)
            raise TeacherUnavailable("the teacher was away")

    answered, told = around(fails_once), []  # type: ignore[var-annotated]
    result = asyncio.run(asyncio.wait_for(run_wrapped(stream(), retrying, told), timeout=20))
    assert Counter(answered) == dict.fromkeys(range(20), 1)
    assert numbers(result.dataset) == list(range(20))
    assert told[-1] == 20


def test_a_wrapper_that_gives_up_stops_all_with_its_error(stream: MakeStream, around: Any) -> None:
    async def fails(number: int) -> None:
        if number == 5:
            raise TeacherUnavailable("the teacher left for good")

    around(fails)
    with pytest.raises(TeacherUnavailable, match="for good"):
        asyncio.run(asyncio.wait_for(run_wrapped(stream(), retrying), timeout=20))


def test_what_a_killed_run_left_half_written_goes_and_finished_shards_stay(stream: MakeStream, around: Any) -> None:
    around(leaving_after(14))
    with pytest.raises(TeacherUnavailable):
        run(stream(concurrency=1))
    data = dataset_folder(stream().dataset) / "v001" / "data"
    finished = {file: file.stat().st_mtime_ns for file in data.iterdir()}
    assert len(finished) >= 1
    (data / ".train-00003-of-00005.parquet.4711.tmp").write_bytes(b"PAR1")
    around(nothing)
    result = run(stream(concurrency=1))
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert sorted(file.name for file in data.iterdir()) == [f"train-{n:05d}-of-00005.parquet" for n in range(5)]
    assert result.dataset.problems() == []


# ------------------------------------------------------------------------------------------------ filters that look back


class Moody:
    """Keeps or rejects by all that was kept before; one row seen twice, or out of turn, changes everything after it."""

    def __init__(self) -> None:
        self.state = 0
        self.remembered: list[int] = []

    def __call__(self, completion: Completion) -> str | None:
        return "not in the mood" if (self.state + len(completion.text)) % 3 == 0 else None

    def record_kept(self, completion: Completion) -> None:
        self.state = self.state * 5 + len(completion.text)
        self.remembered.append(int(completion.prompt.reference or 0))


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> list[Moody]:
    """The filter of each run, last one last."""
    filters: list[Moody] = []

    def opening(_: object) -> list[NamedFilter]:
        filters.append(Moody())
        return [NamedFilter("moody", filters[-1])]

    monkeypatch.setattr(engine, "open_filters", opening)
    return filters


def expected_kept(prompts: int) -> list[int]:
    """What the filter keeps where it sees every answer once and in order."""
    state, kept = 0, []
    for number in range(prompts):
        length = len(f"echo: Question {number}, {'very ' * (number % 7)}long?")
        if (state + length) % 3:
            state = state * 5 + length
            kept.append(number)
    return kept


def assert_decided_in_order(result: LabelResult, last: Moody) -> None:
    kept = expected_kept(20)
    assert 3 < len(kept) < 17
    assert numbers(result.dataset) == kept
    assert numbers(result.dataset, "rejected") == [number for number in range(20) if number not in kept]
    assert last.remembered == kept


@pytest.mark.parametrize("shard_size", [1, 3, 7, 100])
@pytest.mark.parametrize("concurrency", [1, 64])
def test_a_filter_that_looks_back_decides_the_same_however_the_work_is_cut(
    stream: MakeStream, moody: list[Moody], shard_size: int, concurrency: int
) -> None:
    assert_decided_in_order(run(stream(shard_size=shard_size, concurrency=concurrency)), moody[-1])


@pytest.mark.parametrize("calls", [0, 5, 9, 13, 19])
@pytest.mark.parametrize("resumed_with", [{}, {"shard_size": 6}, {"concurrency": 1}], ids=str)
def test_a_filter_that_looks_back_decides_the_same_wherever_the_run_was_cut(
    stream: MakeStream, around: Any, moody: list[Moody], calls: int, resumed_with: dict[str, int]
) -> None:
    around(leaving_after(calls))
    with pytest.raises(TeacherUnavailable):
        run(stream())
    around(nothing)
    assert_decided_in_order(run(stream(**resumed_with)), moody[-1])


@pytest.mark.parametrize("failures", [{0: 2}, {1: 1, 2: 1, 4: 2}])
def test_a_filter_that_looks_back_sees_no_row_twice_though_a_shard_is_tried_again(
    stream: MakeStream, moody: list[Moody], monkeypatch: pytest.MonkeyPatch, failures: dict[int, int]
) -> None:
    FailingWrites(monkeypatch, failures)
    result = asyncio.run(asyncio.wait_for(run_wrapped(stream(), retrying), timeout=20))
    assert_decided_in_order(result, moody[-1])


def test_a_filter_that_looks_back_begins_afresh_with_a_new_version(stream: MakeStream, moody: list[Moody]) -> None:
    run(stream(10))
    assert_decided_in_order(run(stream(20)), moody[-1])


# ---------------------------------------------------------------------------------------------------- sources and memory


def test_every_kind_of_source_makes_the_same_dataset(
    stream: MakeStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(stream())
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet", row_group_size=3)
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub" / "train.parquet")
    monkeypatch.chdir(tmp_path)  # a data set's id without a hub: the library takes a folder of that name
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for source in ("prompts.parquet", "hub"):
        again = run(stream(source=source))
        assert (again.sent, again.dataset) == (0, first.dataset), source


@pytest.mark.parametrize(
    "row", [{"prompt": "cut \ud83d here"}, {"prompt": "whole", "reference": "\udc00"}], ids=["prompt", "reference"]
)
def test_half_a_character_is_told_before_anything_is_sent(
    stream: MakeStream, around: Any, tmp_path: Path, row: dict[str, str]
) -> None:
    answered = around(nothing)
    recipe = stream()
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(PromptError, match=r"cannot be stored.*Correct its row"):
        run(recipe)
    assert answered == []
    assert not dataset_folder(recipe.dataset).exists()


def test_a_source_that_changes_under_a_run_changes_nothing_of_it(
    stream: MakeStream, around: Any, tmp_path: Path
) -> None:
    async def edit(_: int) -> None:
        (tmp_path / "prompts.jsonl").write_text('{"prompt": "another"}\n')

    around(edit)
    assert numbers(run(stream()).dataset) == list(range(20))


@pytest.mark.parametrize("what", ["plan", "run"])
def test_memory_does_not_grow_with_the_number_of_prompts(stream: MakeStream, what: str) -> None:
    """What Python holds at the most; prompts four times as many. (The whole process: benchmarks/label_memory.py.)"""

    def plan(recipe: Recipe) -> None:
        teacher = open_teacher(recipe.teacher, recipe.label, 0)
        with make_plan(recipe, teacher.identity) as made:
            for number in range(made.shards):
                made.shard(number)
            assert sum(1 for _ in made.ids()) == made.requests

    def peak(prompts: int) -> int:
        recipe = stream(prompts, shard_size=20)
        tracemalloc.start()
        try:
            plan(recipe) if what == "plan" else run(recipe)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(40)  # what is imported and cached once
    few, many = peak(250), peak(1000)
    assert many - few < 750 * 250  # bytes a prompt: its share of a shard's name and file entry, not the prompt itself


def test_answers_are_found_though_a_shard_s_lie_all_over_the_earlier_version(
    stream: MakeStream, tmp_path: Path
) -> None:
    run(stream(300, shard_size=50))
    recipe = stream(300, shard_size=50)
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    dealt = [line for start in range(7) for line in lines[::-1][start::7]]
    (tmp_path / "prompts.jsonl").write_text("\n".join(dealt) + "\n")
    result = run(recipe)
    assert (result.sent, result.reused) == (0, 300)
    assert numbers(result.dataset) == [int(json.loads(line)["reference"]) for line in dealt]
    assert result.dataset.problems() == []
