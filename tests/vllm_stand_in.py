"""A server that speaks as much of vLLM's API as Stillhouse asks for, over a small model in transformers.

    with running_vllm(tiny_model) as vllm:
        ... vllm.base_url, vllm.bodies ...

`Faults` says what is wrong with it: the arithmetic, the tokenizer, the room for log-probabilities, or prompts that kill its
engine. The real vLLM is tried by `make test-vllm`; this one makes the same answers in milliseconds.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from aiohttp import web

from stillhouse.models.load import load_language_model, load_tokenizer
from stillhouse.records import Message


@dataclass
class Faults:
    """What is wrong with a server; nothing by default."""

    temperature: float = 1.0  # that its log-probabilities are taken at, which is wrong unless it is 1
    token_shift: int = 0  # added to every token id that it makes of a text
    max_logprobs: int = 50
    kills: tuple[int, ...] = ()  # a prompt with one of these tokens ends the engine: the connection breaks


@dataclass
class RunningVllm:
    """One server; `bodies` are those of all completions asked for."""

    model: Path
    name: str = "teacher"
    window: int = 256
    faults: Faults = field(default_factory=Faults)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    at_once_when_killed: list[int] = field(default_factory=list)
    base_url: str = ""

    def __post_init__(self) -> None:
        self._lm = load_language_model(self.model)
        self._tokenizer = load_tokenizer(self.model)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/v1/completions", self._completions)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.name, "max_model_len": self.window}]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "messages" in body:
            turns = [Message(turn["role"], turn["content"]).as_dict() for turn in body["messages"]]
            ids = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        else:
            ids = self._tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
        return web.json_response({"tokens": [token + self.faults.token_shift for token in ids]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if (body.get("logprobs") or 0) > self.faults.max_logprobs:
            words = f"Requested sample logprobs of {body['logprobs']}, which is greater than max allowed: "
            return web.json_response({"error": {"message": f"{words}{self.faults.max_logprobs}"}}, status=400)
        self.at_once += 1
        try:
            await asyncio.sleep(0.01)
            if set(body["prompt"]) & set(self.faults.kills):
                self.at_once_when_killed.append(self.at_once)
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            return web.json_response(self._answer(body))
        finally:
            self.at_once -= 1

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, written = list(body["prompt"]), []
        for _ in range(body["max_tokens"]):
            written.append(int(self._logprobs([*prompt, *written])[-1].argmax()))
        told = [*prompt, *written] if body.get("echo") else written
        full = self._logprobs([*prompt, *written])  # (time, vocabulary): of the token after each
        first = 0 if body.get("echo") else len(prompt)
        rows = [None if at == 0 else full[at - 1] for at in range(first, len(prompt) + len(written))]
        k = body.get("logprobs")
        logprobs = k and {
            "tokens": [f"token_id:{token}" for token in told],
            "token_logprobs": [
                None if row is None else float(row[token]) for row, token in zip(rows, told, strict=True)
            ],
            "top_logprobs": [_top(row, token, k) for row, token in zip(rows, told, strict=True)],
        }
        choice = {
            "index": 0,
            "text": self._tokenizer.decode(written),
            "finish_reason": "length",
            "token_ids": written,
            "prompt_token_ids": prompt,
            "logprobs": logprobs,
        }
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(written)}
        return {"model": self.name, "choices": [choice], "usage": usage}

    def _logprobs(self, ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits = self._lm.model(input_ids=torch.tensor([list(ids)])).logits[0].double()
        return (logits / self.faults.temperature).log_softmax(dim=-1)


def _top(row: torch.Tensor | None, token: int, k: int) -> dict[str, float] | None:
    """The token itself, and the k most likely."""
    if row is None:
        return None
    best = row.topk(k)
    listed = {token: float(row[token]), **dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))}
    return {f"token_id:{number}": value for number, value in listed.items()}


@contextmanager
def running_vllm(model: Path, **parts: Any) -> Iterator[RunningVllm]:
    """A server in a thread; keyword arguments are the fields of `RunningVllm`."""
    server = RunningVllm(model, **parts)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[web.AppRunner, int]:
        runner = web.AppRunner(server.app(), shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result(timeout=30)
    server.base_url = f"http://127.0.0.1:{port}/v1"
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
