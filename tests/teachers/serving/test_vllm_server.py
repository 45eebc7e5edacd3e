"""A vLLM teacher that is never asked builds no server: no temporary folder and no exit hook is left."""

import asyncio
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse.processes import supervised
from stillhouse.teachers.base import open_teacher
from stillhouse.teachers.serving.vllm_server import ServeSettings, VllmServer
from tests.conftest import MakeRecipe, make_tiny_model


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a server wants to be done when the process ends."""
    found: list[Any] = []
    stand_in = SimpleNamespace(
        register=found.append, unregister=lambda one: found.remove(one) if one in found else None
    )
    monkeypatch.setattr(supervised, "atexit", stand_in)
    return found


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_teacher_closed_unused_leaves_nothing(
    scripted_recipe: MakeRecipe, tmp_path: Path, hooks: list[Any], temporary: Path
) -> None:
    make_tiny_model(tmp_path / "model")
    options = {"serve": {"dtype": "float32"}, "check": {"parity": False}}
    recipe = scripted_recipe(teacher={"kind": "vllm", "model": str(tmp_path / "model"), "options": options})
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    assert teacher.identity.kind == "vllm"
    asyncio.run(teacher.close())
    assert "_server" not in vars(teacher._servers)  # type: ignore[attr-defined]
    assert hooks == [] and list(temporary.glob("stillhouse-*")) == []


def test_a_server_that_is_not_started_leaves_nothing(hooks: list[Any], temporary: Path) -> None:
    server = VllmServer(ServeSettings(), "model", "name", None, max_logprobs=20)
    assert server.base_url.startswith("http://127.0.0.1:") and not server.running
    server.stop()
    assert hooks == [] and list(temporary.glob("stillhouse-*")) == []


def test_a_server_that_has_ended_has_no_hook(
    hooks: list[Any], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillhouse.errors import TeacherUnavailable

    monkeypatch.setenv("STILLHOUSE_VLLM_PYTHON", "/bin/false")
    server = VllmServer(ServeSettings(), "model", "name", None, max_logprobs=20)
    with pytest.raises(TeacherUnavailable, match=r"exited with status 1\. The end of its log .*server.log"):
        asyncio.run(server.start())
    assert not server.running
    assert hooks == []
    assert server.log.is_file()  # which the message names
