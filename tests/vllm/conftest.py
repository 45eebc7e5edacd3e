"""Real vLLM servers of the demo teacher, on the CPU. `make test-vllm` installs vLLM and runs what stands here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stillhouse.recipe.recipe import Recipe
from stillhouse.teachers.serving.vllm_server import ServeSettings, VllmServer
from tests.conftest import MakeRecipe

NAME = "teacher"
SERVE = ServeSettings(dtype="float32", max_model_len=1024, enforce_eager=True, cpu_kvcache_gib=1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/vllm/" in item.path.as_posix():
            item.add_marker("vllm")


def make_server(model: Path, **settings: Any) -> VllmServer:
    return VllmServer(SERVE.model_copy(update=settings), str(model), NAME, None, max_logprobs=50)


@pytest.fixture(scope="session")
def server(demo_teacher: Path) -> Iterator[VllmServer]:
    """One server for all tests that do it no harm."""
    running = make_server(demo_teacher)
    asyncio.run(running.start())
    yield running
    running.stop()


@pytest.fixture
def vllm_recipe(scripted_recipe: MakeRecipe, demo_teacher: Path) -> Callable[..., Recipe]:
    """Makes recipes with a vLLM teacher; `options` are the teacher's, other keywords replace top-level parts."""

    def make(options: dict[str, Any], model: Path = demo_teacher, **parts: Any) -> Recipe:
        label = {"sampling": {"temperature": 0.8, "max_tokens": 24}, "soft": {"k": 20}, "shard_size": 6}
        teacher = {"kind": "vllm", "model": str(model), "options": {"served_name": NAME, **options}}
        return scripted_recipe(**{"label": label, "teacher": teacher, **parts})

    return make
