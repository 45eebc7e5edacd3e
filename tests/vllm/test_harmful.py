"""What only a real server can show: arithmetic that is wrong, and a request that kills the engine each time."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Recipe
from pipeline.errors import TeacherRefused
from pipeline.labelling.engine import label
from pipeline.progress import Progress, silent
from pipeline.serving.vllm_server import VllmServer
from pipeline.stages import check_teacher
from pipeline.teachers.vllm import VllmTeacher
from tests.vllm.conftest import NAME, make_server

MakeVllmRecipe = Callable[..., Recipe]


def test_bfloat16_is_judged_by_what_it_does(vllm_recipe: MakeVllmRecipe, demo_teacher: Path) -> None:
    """vLLM in bfloat16 has been seen to talk nonsense on a processor without it, and to be sound on another like it."""
    server = make_server(demo_teacher, dtype="bfloat16")
    asyncio.run(server.start())
    recipe = vllm_recipe({"base_urls": [server.base_url]})
    try:
        found = {one.what: one for one in asyncio.run(check_teacher(recipe))}
        sound = "Paris" in greedy(server, "What is the capital of France?")
        assert found["parity"].well == sound, found["parity"].said
        strict = vllm_recipe({"base_urls": [server.base_url], "check": {"kl": 1e-5}})  # as if float32 had been promised
        with pytest.raises(TeacherRefused, match=r"parity: KL .* largest difference .*--dtype float32"):
            asyncio.run(label(strict))
    finally:
        server.stop()


def greedy(server: VllmServer, question: str) -> str:
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 24,
    }
    request = urllib.request.Request(
        f"{server.base_url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def test_a_request_that_kills_the_engine_twice_is_rejected_and_the_rest_is_saved(
    vllm_recipe: MakeVllmRecipe, word_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seed, a temperature, and a prompt that is read in pieces: together they end vLLM's engine on a CPU."""
    with word_prompts.open("a") as stream:
        stream.write('{"word": "' + "very " * 2500 + 'long"}\n')
    without_seed = VllmTeacher._generating

    def deadly(teacher: VllmTeacher, prompt: Sequence[int]) -> Mapping[str, Any]:
        return {**without_seed(teacher, prompt), **({"seed": 7} if len(prompt) > 2048 else {})}

    monkeypatch.setattr(VllmTeacher, "_generating", deadly)
    serve = {"dtype": "float32", "max_model_len": 4096, "enforce_eager": True, "cpu_kvcache_gib": 1}
    starts: list[VllmServer] = []
    start = VllmServer.start

    async def counted(self: VllmServer, progress: Progress = silent) -> None:
        starts.append(self)
        await start(self, progress)

    monkeypatch.setattr(VllmServer, "start", counted)
    result = asyncio.run(label(vllm_recipe({"serve": serve, "check": {"parity": False}})))
    assert result.dataset.manifest.rejected == {"killed-engine": 1}
    assert sum(result.dataset.manifest.rows.values()) == 12
    assert 2 <= len(starts) <= 3  # again after each death, if anything was left to ask
