"""Which code is mutated, and which tests are asked about it: those of its room, without Prefect, Ray or a real vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.paths import ROOT


@dataclass(frozen=True)
class Room:
    """Some modules and the tests that hold them. The first test that fails ends a mutant: put the quick ones first."""

    name: str
    sources: tuple[str, ...]
    tests: tuple[str, ...]  # files, or patterns for those that are not named before
    without: tuple[str, ...] = ()  # modules that only tests of another kind run, which take minutes, and such tests

    def modules(self) -> Iterator[str]:
        """The room's Python files, by their way from the repository's root."""
        for source in self.sources:
            path = ROOT / source
            for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
                way = str(file.relative_to(ROOT))
                if way not in self.without:
                    yield way

    def tests_of(self, module: str) -> list[str]:
        """The room's test files, that of the module's own name first."""
        own = f"test_{Path(module).stem}.py"
        return sorted(self.test_files(), key=lambda test: not test.endswith(f"/{own}"))

    def test_files(self) -> list[str]:
        """The room's test files, in the order of `tests`."""
        found = [str(file.relative_to(ROOT)) for test in self.tests for file in sorted(ROOT.glob(test))]
        return [test for test in dict.fromkeys(found) if test not in self.without]


ROOMS = (
    Room(
        "storage",
        ("pipeline/stillhouse/storage",),
        (
            "tests/storage/test_durable.py",
            "tests/storage/test_two_at_once.py",
            "tests/storage/test_storage.py",
            "tests/storage/test_storage_lock.py",
            "tests/labelling/test_durability.py",
            "tests/storage/test_storage_faults.py",
        ),
    ),
    Room(
        "labelling",
        ("pipeline/stillhouse/labelling",),
        (
            "tests/labelling/test_journal.py",
            "tests/labelling/test_budget.py",
            "tests/labelling/test_send_order.py",
            "tests/labelling/test_rate_limiter.py",
            "tests/labelling/test_estimate.py",
            "tests/labelling/test_metrics.py",
            "tests/labelling/test_engine.py",
            "tests/labelling/test_incremental.py",
            "tests/labelling/test_growing.py",
            "tests/labelling/test_streaming.py",
            "tests/labelling/test_parts.py",
            "tests/labelling/test_faults.py",
            "tests/labelling/test_durability.py",
            "tests/labelling/batches/test_*.py",
            "tests/labelling/test_*.py",
        ),
        without=("pipeline/stillhouse/labelling/runners/ray.py", "tests/labelling/runners/test_ray.py"),
    ),
    Room(
        "serving",
        ("pipeline/stillhouse/teachers/serving",),
        (
            "tests/teachers/serving/test_*.py",
            "tests/teachers/test_openai.py",
            "tests/exchange/test_openai_log.py",
            "tests/labelling/test_never_sent.py",
            "tests/labelling/test_faults.py",
        ),
        without=(
            "pipeline/stillhouse/teachers/serving/check.py",
            "pipeline/stillhouse/teachers/serving/vllm_server.py",
        ),
    ),
    Room(
        "encodings",
        ("pipeline/stillhouse/dataset/encodings",),
        (
            "tests/dataset/encodings/test_round_trip.py",
            "tests/dataset/encodings/test_error_bounds.py",
            "tests/dataset/encodings/test_unbiased.py",
            "tests/dataset/test_reader.py",
        ),
    ),
    Room(
        "losses",
        ("pipeline/stillhouse/student/losses",),
        (
            "tests/student/losses/test_losses.py",
            "tests/student/losses/test_losses_objective.py",
            "tests/student/losses/test_sampled_labels.py",
            "tests/student/training/test_forward.py",
        ),
    ),
)


def room_of(module: str) -> Room:
    """The room that a module belongs to."""
    return next(room for room in ROOMS if module in room.modules())
