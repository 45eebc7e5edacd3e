"""What only a real server can show: arithmetic that is wrong, and a request that kills the engine each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Recipe
from pipeline.errors import TeacherRefused
from pipeline.labelling.engine import label
from pipeline.progress import Progress, silent
from pipeline.serving.vllm_server import VllmServer
from pipeline.stages import check_teacher
from pipeline.teachers.vllm import VllmTeacher
from tests.vllm.conftest import make_server

MakeVllmRecipe = Callable[..., Recipe]


def test_bfloat16_is_refused_where_the_processor_has_none(vllm_recipe: MakeVllmRecipe, demo_teacher: Path) -> None:
    """vLLM's arithmetic in bfloat16 is wrong on a processor with AVX2 alone, and sound on one that knows bfloat16."""
    server = make_server(demo_teacher, dtype="bfloat16")
    asyncio.run(server.start())
    recipe = vllm_recipe({"base_urls": [server.base_url]})
    try:
        found = {one.what: one for one in asyncio.run(check_teacher(recipe))}
        sound = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        assert found["parity"].well == sound, found["parity"].said
        if not sound:
            with pytest.raises(TeacherRefused, match=r"parity: KL .* largest difference .*--dtype float32"):
                asyncio.run(label(recipe))
    finally:
        server.stop()


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
