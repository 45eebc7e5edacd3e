"""What only a real server can show: arithmetic that is wrong, and a request that kills the engine each time."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.errors import TeacherRefused
from stillhouse.labelling.engine import label
from stillhouse.models.layout import completion_logits, make_token_batch
from stillhouse.models.load import encode_prompt, load_language_model
from stillhouse.progress import Progress, silent
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Message
from stillhouse.stages.stages import check_teacher
from stillhouse.teachers import vllm
from stillhouse.teachers.serving.vllm_requests import generation_body
from stillhouse.teachers.serving.vllm_server import VllmServer
from tests.vllm.conftest import NAME, make_server

MakeVllmRecipe = Callable[..., Recipe]


QUESTIONS = ("What is the capital of France?", "Name the capital of Italy.", "Write one sentence about tea.")


def test_bfloat16_is_judged_by_what_it_does(vllm_recipe: MakeVllmRecipe, demo_teacher: Path) -> None:
    """The check's verdict is that of the answers: whether every token in them is nearly the best in float32 too.

    Whether an answer is right says nothing: in bfloat16 the demo teacher begins the first of these with "L'Étoile" and not
    with "The", of which float32 thinks 0.1 nats less, and goes on from there as it would in float32.
    """
    server = make_server(demo_teacher, dtype="bfloat16")
    asyncio.run(server.start())
    recipe = vllm_recipe({"base_urls": [server.base_url]})
    try:
        found = {one.check: one for one in asyncio.run(check_teacher(recipe))}
        behind = max(behind_the_best(demo_teacher, question, greedy(server, question)) for question in QUESTIONS)
        assert found["parity"].passed == (behind < 0.5), (found["parity"].detail, behind)
        strict = vllm_recipe({"base_urls": [server.base_url], "check": {"kl": 1e-5}})  # as if float32 had been promised
        with pytest.raises(TeacherRefused, match=r"parity: KL .* largest difference .*--dtype float32"):
            asyncio.run(label(strict))
    finally:
        server.stop()


def behind_the_best(folder: Path, question: str, answer: str) -> float:
    """By how many nats, at most, a token of the answer is less likely than the most likely one, in float32."""
    lm = load_language_model(folder, device="cpu")
    prompt = encode_prompt(lm.tokenizer, [Message("user", question)])
    batch = make_token_batch([prompt], [lm.tokenizer(answer, add_special_tokens=False)["input_ids"]], lm.pad_id)
    with torch.inference_mode():
        logits = completion_logits(lm.model, batch)  # (completion tokens, vocabulary)
    chosen = logits.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    return float((logits.max(dim=-1).values - chosen).max())


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

    def deadly(*request: Any) -> Mapping[str, Any]:
        body = generation_body(*request)
        return {**body, **({"seed": 7} if len(body["prompt"]) > 2048 else {})}

    monkeypatch.setattr(vllm, "generation_body", deadly)
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
