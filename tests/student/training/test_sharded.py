"""FSDP that cannot run is refused before any training; what it computes is in test_distributed.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse.errors import RecipeError
from stillhouse.processes import ranks
from stillhouse.recipe.student import StudentSettings
from stillhouse.student.training.sharded import check_sharding


def check(*, use_cpu: bool = False, **launch: Any) -> None:
    """Check a student with FSDP; by default, on a machine with an accelerator."""
    student = StudentSettings.model_validate({"init": {"model": "x"}, "launch": launch or None})
    arguments: Any = SimpleNamespace(fsdp=True, use_cpu=use_cpu)
    check_sharding(student, arguments)


def test_several_processes_may_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    check(num_processes=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check()


def test_one_process_has_nothing_to_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for launch in ({}, {"num_processes": 1}):
        with pytest.raises(RecipeError, match=r"this training has one\. Set student\.launch to {num_processes: 2}"):
            check(**launch)
    monkeypatch.setenv(ranks.LAUNCH, str(tmp_path))
    with pytest.raises(RecipeError, match="this training has one"):
        check(num_processes=2)


def test_a_cpu_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"student\.train\.fsdp is true: training runs on a CPU.*or remove fsdp"):
        check(use_cpu=True, num_processes=2)
