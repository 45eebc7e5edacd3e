"""Run mutants, several at once, each in a copy of the repository, and write each outcome into the session at once."""

from __future__ import annotations

import hashlib
import json
import queue
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from attrs import evolve
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult

from tests.mutants import covering
from tests.mutants.choose import mutation_of
from tests.mutants.covering import Covering
from tests.mutants.rooms import ROOMS, ROOT, Room, room_of

FOLDER = ROOT / ".mutants"
WHICH = ("not slow and not vllm", "slow and not vllm")  # pytest's markers
_LEAST_SECONDS, _TIMES_AS_LONG = 60, 4  # a mutant may take, beside the tests without it
_ONE_TEST = {WHICH[0]: 90, WHICH[1]: 400}  # seconds that one test may take: a mutant that hangs ends soon
_NO_TESTS = 5  # pytest's exit status


@dataclass(frozen=True)
class Copies:
    """Copies of the working tree, one for each mutant that is run at a time, and the seconds of each room's tests."""

    free: queue.SimpleQueue[Path]
    seconds: dict[tuple[str, str], float]  # of the tests without a mutant, by room and `WHICH`
    covering: dict[tuple[str, str], Covering]  # which tests run which line


def run_all(session: WorkDB, items: Sequence[WorkItem], python: Path, workers: int, baselines: Path) -> None:
    """Run these mutants; `baselines` is a file that keeps how long the tests take without a mutant.

    Raises:
        SystemExit: the tests fail without any mutant.
    """
    copies = _make_copies(python, workers, {room_of(way(item)).name for item in items}, baselines)

    def one(item: WorkItem) -> WorkResult:
        module = way(item)
        room = room_of(module)
        copy = copies.free.get()
        try:
            there = evolve(mutation_of(item), module_path=copy / module)
            lines = range(there.start_pos[0], there.end_pos[0] + 1)
            result = WorkResult(WorkerOutcome.NORMAL, "no test runs this line", TestOutcome.SURVIVED)
            asked = [  # the slow tests only where no quick one has failed
                (which, tests)
                for which in WHICH
                for tests in copies.covering[room.name, which].tests(module, lines, room.tests_of(module))
            ]
            for which, tests in asked:
                limit = _LEAST_SECONDS + _TIMES_AS_LONG * copies.seconds[room.name, which]
                result = mutate_and_test([there], _command(copy, python, which, tests), limit)
                if result.test_outcome != TestOutcome.SURVIVED:
                    break
            return result
        finally:
            copies.free.put(copy)

    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(one, item): item for item in items}
        for number, done in enumerate(as_completed(waiting), 1):
            item, result = waiting[done], done.result()
            session.set_result(item.job_id, result)
            where = mutation_of(item)
            told = result.test_outcome.value if result.test_outcome else result.worker_outcome.value
            print(f"{number}/{len(items)} {told}: {way(item)}:{where.start_pos[0]} {where.operator_name}", flush=True)


def way(item: WorkItem) -> str:
    """The module that a mutant changes, by its way from the repository's root."""
    return str(mutation_of(item).module_path.relative_to(ROOT))


def _command(
    copy: Path,
    python: Path,
    which: str,
    tests: Sequence[str],
    options: Sequence[str] = (),
    environment: Mapping[str, str] = {},
) -> str:
    """Run tests in a copy, on one core, until the first that fails. A room may have none that is slow."""
    words = ["env", f"PYTHONPATH={copy}:{copy}/pipeline:{copy}/flows", "OMP_NUM_THREADS=1"]
    words += [*(f"{name}={value}" for name, value in environment.items()), str(python), "-m", "pytest", *options]
    words += ["-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    words += [f"--timeout={_ONE_TEST[which]}", "--timeout-method=thread", "-m", which, *tests]
    return shlex.join(["sh", "-c", f"cd {shlex.quote(str(copy))} && {shlex.join(words)} || test $? = {_NO_TESTS}"])


def _make_copies(python: Path, workers: int, rooms: set[str], baselines: Path) -> Copies:
    """Copy the tree, and run the tests in the first copy: what fails there would kill every mutant."""
    copies: list[Path] = [FOLDER / f"copy-{number}" for number in range(workers)]
    for old in copies:
        shutil.rmtree(old, ignore_errors=True)
    first = copies[0]
    for file in _files():
        (first / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, first / file)
    models = ROOT / "data/models"
    if models.exists():
        (first / "data").mkdir(exist_ok=True)
        (first / "data/models").symlink_to(models.resolve())
    subprocess.run([str(python), "-m", "compileall", "-q", str(first / "pipeline"), str(first / "tests")], check=False)
    asked = [(room, which) for room in ROOMS if room.name in rooms for which in WHICH]
    known = json.loads(baselines.read_text()) if baselines.is_file() else {}
    tests = _tests_digest()
    seconds = {}
    for room, which in asked:
        key = f"{room.name}, {which}, {tests}"
        if key not in known:
            known[key] = _baseline(first, python, which, room, _measured(baselines, room, which))
            baselines.write_text(json.dumps(known, indent=2))
        seconds[room.name, which] = known[key]
    covered = {(room.name, which): Covering(_measured(baselines, room, which), first) for room, which in asked}
    for other in copies[1:]:
        shutil.copytree(first, other, symlinks=True)
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)
    return Copies(free, seconds, covered)


def _tests_digest() -> str:
    """Name the tests as they are: edited ones run without a mutant first."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "tests").rglob("*.py")):
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _measured(baselines: Path, room: Room, which: str) -> Path:
    """The folder of what the tests of a room were found to cover."""
    return baselines.with_suffix(".covered") / f"{room.name}-{WHICH.index(which)}"


def _baseline(copy: Path, python: Path, which: str, room: Room, measured: Path) -> float:
    print(f"the tests of {room.name}, {which}, without a mutant", flush=True)
    shutil.rmtree(measured, ignore_errors=True)
    began = time.monotonic()
    options, environment = covering.options(measured, (str(copy / source) for source in room.sources))
    outcome, output = run_tests(_command(copy, python, which, room.test_files(), options, environment), None)
    if outcome != TestOutcome.SURVIVED:
        raise SystemExit(f"{output}\nThe tests of {room.name} fail without a mutant: mend them first.")
    return time.monotonic() - began


def _files() -> Iterator[str]:
    """What git tracks, and what it would if it were added."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    yield from (file for file in listed.stdout.split("\0") if file and (ROOT / file).is_file())
