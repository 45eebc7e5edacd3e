"""`make mutants`: see the package's docstring."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome

from benchmarks.shared import measured_on, versions_of, write_section
from tests.mutants import operators
from tests.mutants.choose import fill, mutation_of
from tests.mutants.report import Outcome, section, without_reason
from tests.mutants.rooms import ROOMS, ROOT, room_of
from tests.mutants.run import FOLDER, run_all, way

DOCS = ROOT / "docs/mutants.md"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Change one place of the code at a time, and see whether a test fails."
    )
    parser.add_argument("--sample", type=int, default=200, help="so many mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=int, default=2, help="so many at once")
    parser.add_argument("--again", action="store_true", help="ask anew about mutants that survived")
    parser.add_argument("--room", action="append", choices=[room.name for room in ROOMS], help="its mutants alone")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv/bin/python", help="that has the tests' packages")
    parser.add_argument("--output", type=Path, default=DOCS, help="the Markdown file with the table")
    given = parser.parse_args()
    operators.register()
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{_code()}-{given.sample}-{given.seed}.sqlite"
    count = file.with_suffix(".places")
    if not count.is_file():  # it was not filled to its end
        file.unlink(missing_ok=True)
    with use_db(file) as session:
        if not count.is_file():
            count.write_text(str(fill(session, given.sample, given.seed)))
        waiting = [*session.pending_work_items]
        waiting += [
            item for item, result in session.completed_work_items if result.worker_outcome == WorkerOutcome.EXCEPTION
        ]
        if given.again:
            waiting += [
                item for item, result in session.completed_work_items if result.test_outcome == TestOutcome.SURVIVED
            ]
        if given.room:
            waiting = [item for item in waiting if room_of(way(item)).name in given.room]
        if waiting:
            run_all(session, waiting, given.python.absolute(), given.workers, file.with_suffix(".seconds"))
        outcomes = _outcomes(session)
    machine = measured_on(versions_of("cosmic-ray"))
    text = section(outcomes, sample=given.sample, seed=given.seed, places=int(count.read_text()), machine=machine)
    write_section("mutants", text, given.output)
    if missing := without_reason(outcomes):
        print(f"No test and no reason: write the one, or the other into tests/mutants/reasons.toml:\n{missing}")


def _code() -> str:
    """Names the code that is mutated and what chooses: with another of these there are other mutants."""
    digest = hashlib.sha256()
    choosing = [f"tests/mutants/{name}.py" for name in ("choose", "left_out", "operators")]
    for module in sorted([*choosing, *(module for room in ROOMS for module in room.modules())]):
        digest.update(module.encode() + (ROOT / module).read_bytes())
    return digest.hexdigest()[:12]


def _outcomes(session: WorkDB) -> list[Outcome]:
    """Of all mutants that were run.

    Raises:
        SystemExit: one could not be run.
    """
    found = []
    for item, result in session.completed_work_items:
        if result.worker_outcome == WorkerOutcome.SKIPPED:
            continue
        if result.worker_outcome != WorkerOutcome.NORMAL:
            raise SystemExit(f"{mutation_of(item)} could not be run:\n{result.output}")
        one = mutation_of(item)
        module = str(one.module_path.relative_to(ROOT))
        found.append(Outcome(module, one.start_pos[0], result.diff or "", result.is_killed))
    return sorted(found, key=lambda one: (one.module, one.line))


if __name__ == "__main__":
    main()
