"""Labelling that is stopped, killed, or out of disk: what was answered is kept, and is never paid for again."""

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest

from stillhouse.dataset.store import dataset_folder, open_dataset
from stillhouse.errors import StorageFailed
from stillhouse.labelling.engine import label
from stillhouse.labelling.journal import Journal
from stillhouse.labelling.journal_view import JournalView
from stillhouse.recipe.recipe import Recipe
from stillhouse.storage.durable import write_atomically
from tests.conftest import MakeRecipe
from tests.power import PowerFailures, whole_versions
from tests.rows import rows_by_prompt
from tests.stand_in import Stats, running_stand_in

CONCURRENCY = 8
KILLS = 5
PROMPTS = [f"Name number {number}." for number in range(120)]
RecipeFile = Callable[[Recipe], Path]


def command(recipe: Path) -> list[str]:
    return [sys.executable, "-m", "stillhouse", "label", str(recipe), "--no-flow", "--json"]


def ended(arguments: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def completed(arguments: list[str], folder: Path) -> dict[str, Any]:
    """The JSON result of a run that must succeed."""
    done = ended(arguments, folder)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait for something that the server sees, while the process lives."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def durable_ids(recipe: Recipe, scratch: Path) -> set[str]:
    """Keys of every answer on the disk. The journal is copied: reading it would change what the next run finds."""
    folder = dataset_folder(recipe.dataset)
    ids: set[str] = set()
    for file in folder.glob("v*/*/*.parquet"):
        ids.update(pq.read_table(file, columns=["id"])["id"].to_pylist())
    scratch.mkdir()
    for file in folder.glob("journal.sqlite*"):
        shutil.copy(file, scratch)
    with closing(JournalView(scratch)) as journal:
        ids.update(journal.ids())
    shutil.rmtree(scratch)
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_was_under_way_and_asks_nothing_twice(
    api_recipe: MakeRecipe, recipe_file: RecipeFile, tmp_path: Path, stop: signal.Signals
) -> None:
    with running_stand_in(latency=0.15) as server:
        recipe = api_recipe(server.base_url, PROMPTS, concurrency=CONCURRENCY, shard_size=40)
        run = command(recipe_file(recipe))
        with subprocess.Popen(run, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            until(lambda: server.stats.billed_answers >= 20 and server.stats.at_once == CONCURRENCY, process)
            process.send_signal(stop)
            told, complained = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Continue with: stillhouse label" in complained
        assert "Traceback" not in complained
        assert told == ""
        kept = durable_ids(recipe, tmp_path / "copy")
        assert len(kept) == server.stats.billed_answers == server.stats.requests < len(PROMPTS)

        result = completed(run, tmp_path)
        assert (result["sent"], result["reused"]) == (len(PROMPTS) - len(kept), len(kept))
        assert dict(server.stats.billed) == dict.fromkeys(PROMPTS, 1)


@dataclass(frozen=True)
class Left:
    """What a run that did not end left behind."""

    kept: set[str]  # keys of answers on the disk
    billed: dict[str, int]  # by prompt

    def check_nothing_durable_was_asked_again(self, recipe: Recipe, stats: Stats) -> None:
        """To be asked once the dataset is finished."""
        rows = rows_by_prompt(open_dataset(dataset_folder(recipe.dataset)))
        for prompt, row in rows.items():
            if row["id"] in self.kept:
                assert stats.billed[prompt] == self.billed[prompt]


@pytest.mark.slow
def test_killed_again_and_again_nothing_is_lost_or_paid_for_twice(
    api_recipe: MakeRecipe, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    random = Random(20)
    kills: list[Left] = []
    with running_stand_in(latency=0.03) as server:
        stats = server.stats
        recipe = api_recipe(server.base_url, PROMPTS, concurrency=CONCURRENCY, shard_size=20)
        run = command(recipe_file(recipe))
        for _ in range(KILLS):
            target = stats.billed_answers + random.randint(1, len(PROMPTS) // (KILLS + 1))
            with subprocess.Popen(
                run, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as process:
                until(lambda target=target: stats.billed_answers >= target, process)  # type: ignore[misc]
                time.sleep(random.uniform(0, 0.03))
                process.kill()
            while stats.at_once:  # the server ends what is left, and may still charge for it
                time.sleep(0.005)
            kills.append(Left(durable_ids(recipe, tmp_path / "copy"), dict(stats.billed)))
        result = completed(run, tmp_path)

    assert sum(result["rows"].values()) == len(PROMPTS)
    assert result["rejected"] == {}
    dataset = open_dataset(dataset_folder(recipe.dataset))
    assert dataset.problems() == []
    assert set(rows_by_prompt(dataset)) == set(PROMPTS)
    assert stats.billed_answers - len(PROMPTS) <= KILLS * CONCURRENCY
    for kill in kills:
        kill.check_nothing_durable_was_asked_again(recipe, stats)


# ---------------------------------------------------------------------------------------------------------------- disks


class FileSizes:
    """A disk where no file may grow beyond a size: what a full one does to a process, without being root."""

    _LIMITED = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
        "os.execv(sys.argv[2], sys.argv[2:])\n"
    )

    def __init__(self, size: int) -> None:
        self._size: int | None = size

    def on_it(self, arguments: list[str]) -> list[str]:
        return arguments if self._size is None else [sys.executable, "-c", self._LIMITED, str(self._size), *arguments]

    def free_space(self) -> None:
        self._size = None


class SmallDisk:
    """A file system of its own, which is full soon."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        folder.mkdir()
        self._mount(f"size={size}", "tmpfs")

    def on_it(self, arguments: list[str]) -> list[str]:
        return arguments

    def free_space(self) -> None:
        self._mount("remount,size=64m", "tmpfs")

    def close(self) -> None:
        subprocess.run(["umount", str(self._folder)], check=True)

    def _mount(self, options: str, kind: str) -> None:
        made = subprocess.run(
            ["mount", "-t", kind, "-o", options, kind, str(self._folder)], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip("mounting a file system needs root")


Disk = FileSizes | SmallDisk


@contextmanager
def full_disk(kind: str, folder: Path) -> Iterator[Disk]:
    if kind == "file sizes":
        yield FileSizes(400_000)
        return
    disk = SmallDisk(folder, 700_000)
    try:
        yield disk
    finally:
        disk.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file sizes", "file system"])
def test_a_full_disk_is_told_and_when_there_is_space_the_run_goes_on(
    api_recipe: MakeRecipe, recipe_file: RecipeFile, tmp_path: Path, kind: str
) -> None:
    with full_disk(kind, tmp_path / "labels") as disk, running_stand_in(latency=0.01, text="Blue. " * 1500) as server:
        recipe = api_recipe(server.base_url, PROMPTS, concurrency=CONCURRENCY)
        run = command(recipe_file(recipe))
        for _ in range(2):  # the second finds it full already
            done = ended(disk.on_it(run), tmp_path)
            assert done.returncode == 1
            assert str(dataset_folder(recipe.dataset)) in done.stderr
            assert "ree disk space" in done.stderr
            assert "Traceback" not in done.stderr
            assert "never retrieved" not in done.stderr
            assert json.loads(done.stdout)["error"]["kind"] == "StorageFailed"
        left = Left(durable_ids(recipe, tmp_path / "copy"), dict(server.stats.billed))
        assert 0 < len(left.kept) < len(PROMPTS)
        disk.free_space()
        result = completed(disk.on_it(run), tmp_path)
        assert (result["sent"], result["reused"]) == (len(PROMPTS) - len(left.kept), len(left.kept))
        assert set(rows_by_prompt(open_dataset(dataset_folder(recipe.dataset)))) == set(PROMPTS)
        left.check_nothing_durable_was_asked_again(recipe, server.stats)
        assert server.stats.billed_answers - len(PROMPTS) <= 2 * CONCURRENCY  # answers that found no space


_UNPRIVILEGED = (  # root may write anywhere: give that up, and be bound by a folder's mode like anyone
    "import ctypes, os, sys\n"
    "if os.geteuid() == 0:\n"
    "    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH\n"
    "        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """No folder and no file in it can be written."""
    modes = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")]}
    for path in modes:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_sent(
    api_recipe: MakeRecipe, recipe_file: RecipeFile, tmp_path: Path, begun: bool
) -> None:
    with running_stand_in() as server:
        recipe = api_recipe(server.base_url, PROMPTS[:10])
        root = Path(recipe.dataset.root)
        root.mkdir()
        if begun:
            asyncio.run(label(api_recipe(server.base_url, PROMPTS[:4])))
            recipe = api_recipe(server.base_url, PROMPTS[:10])
        run = command(recipe_file(recipe))
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        sent = server.stats.requests
        with read_only(root):
            done = ended([sys.executable, "-c", _UNPRIVILEGED, *run], tmp_path)
            assert done.returncode == 1
            assert f"{dataset_folder(recipe.dataset)} cannot be written: Permission denied" in done.stderr
            assert "give write permission" in done.stderr
            assert "Traceback" not in done.stderr
            assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
        assert server.stats.requests == sent
        assert completed(run, tmp_path)["sent"] == 10 - sent


class FullFrom:
    """Stands for `os.fsync`: from one call on, the disk is full."""

    def __init__(self, call: int) -> None:
        self._left = call - 1
        self._plain = os.fsync

    def __call__(self, handle: int) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._plain(handle)


def test_a_file_that_finds_no_space_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "kept", b"before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FullFrom(1))
        with pytest.raises(StorageFailed, match=r"kept cannot be written: No space left on device.*Free disk space"):
            write_atomically(tmp_path / "kept", b"after")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("kept", b"before")]


@pytest.mark.parametrize("call", range(1, 15))  # new folders, the recipe, each shard's file, the card, the manifest
def test_space_that_ends_between_an_answer_and_its_file_costs_no_answer(
    api_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with running_stand_in() as server:
        recipe = api_recipe(server.base_url, PROMPTS[:10], shard_size=5)
        recipe = recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"holdout": 0.0})})
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", FullFrom(call))
            with pytest.raises(StorageFailed, match="(?i)free (disk )?space"):
                asyncio.run(label(recipe))
        asked = server.stats.requests
        result = asyncio.run(label(recipe))
        assert result.sent == 10 - asked
        assert dict(server.stats.billed) == dict.fromkeys(PROMPTS[:10], 1)
        assert result.dataset.problems() == []


def test_a_power_failure_at_any_instant_leaves_whole_versions_and_no_answer_is_forgotten_before(
    api_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forget, forgotten = Journal.delete, []

    def forgetting(journal: Journal, *given: Any) -> None:
        forgotten.append(disk.survivors())
        forget(journal, *given)

    monkeypatch.setattr(Journal, "delete", forgetting)
    with running_stand_in() as server, PowerFailures(tmp_path, whole_versions) as disk:
        recipe = api_recipe(server.base_url, PROMPTS[:10], shard_size=5)
        folder = asyncio.run(label(recipe)).dataset.folder
    (left,) = forgotten
    assert whole_versions(left) == [f"{folder.relative_to(tmp_path)}/manifest.json"]


def test_an_answer_that_the_server_sent_is_durable_before_it_is_counted(api_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Whenever progress says so many are answered, at least so many are on the disk."""
    with running_stand_in() as server:
        recipe = api_recipe(server.base_url, PROMPTS[:30], concurrency=4)
        seen: list[tuple[int, int]] = []

        def progress(activity: str, done: int, total: int) -> None:
            seen.append((done, len(durable_ids(recipe, tmp_path / "copy"))))

        asyncio.run(label(recipe, progress))
        assert seen
        assert all(kept >= done for done, kept in seen)
