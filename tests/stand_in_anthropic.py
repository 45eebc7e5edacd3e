"""Anthropic's protocol of the stand-in: messages and message batches; the prompts' words and the jobs' ends are the same.

| end | what happens | billed |
| --- | --- | --- |
| `completed` | every request succeeds or errs | those that succeed |
| `expired:N`, `cancelled:N` | the first N have a result, the others are expired or canceled | N |
| `lost:N` | N requests have no result | the others |
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

Answer = Callable[[str, dict[str, Any], str], Awaitable[tuple[int, dict[str, Any]] | None]]


@dataclass
class MessageBatches:
    """The jobs of one account."""

    ends: list[str] = field(default_factory=list)
    polls: int = 1
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    results: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    submitted: Counter[str] = field(default_factory=Counter)  # jobs by the beginning of their custom ids
    refuse_creation: int = 0
    _polled: Counter[str] = field(default_factory=Counter)

    def routes(self, answer: Answer) -> list[web.RouteDef]:
        self._answer = answer
        return [
            web.post("/v1/messages", self._message),
            web.post("/v1/messages/batches", self._create),
            web.get("/v1/messages/batches", self._list),
            web.get("/v1/messages/batches/{id}", self._read),
            web.get("/v1/messages/batches/{id}/results", self._results),
            web.post("/v1/messages/batches/{id}/cancel", self._cancel),
        ]

    async def _message(self, request: web.Request) -> web.Response:
        body = await request.json()
        status, answer = await self._respond(body) or (500, _error("api_error", "no result"))
        headers = {"anthropic-ratelimit-requests-remaining": "10"}
        return web.json_response(answer, status=status, headers=headers)

    async def _respond(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        found = await self._answer("/chat/completions", body, str(body["messages"][-1]["content"]))
        if found is None:
            return None
        status, answer = found
        if status != 200:
            return status, _error("invalid_request_error", str(answer["error"].get("message")))
        choice = answer["choices"][0]
        blocks = [{"type": "text", "text": choice["message"]["content"] or ""}]
        if "thinking" in body:
            blocks.insert(0, {"type": "thinking", "thinking": "Skies are blue.", "signature": "s"})
        stop = {"length": "max_tokens", "content_filter": "refusal"}.get(choice["finish_reason"], "end_turn")
        usage = {
            "input_tokens": 15,
            "cache_read_input_tokens": 5,
            "cache_creation_input_tokens": 0,
            "output_tokens": 10,
        }
        about = {"id": "msg", "type": "message", "role": "assistant", "model": body["model"], "stop_sequence": None}
        return 200, {**about, "content": blocks, "stop_reason": stop, "usage": usage}

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        number = len(self.jobs) + 1
        id_ = f"msgbatch_{number}"
        now = datetime.now(UTC)
        self.requests[id_] = body["requests"]
        self.jobs[id_] = {
            "id": id_,
            "type": "message_batch",
            "processing_status": "in_progress",
            "created_at": now.isoformat(),
            "expires_at": (now + timedelta(days=1)).isoformat(),
            "ended_at": None,
            "cancel_initiated_at": None,
            "archived_at": None,
            "results_url": None,
            "request_counts": _counts(processing=len(body["requests"])),
        }
        self.submitted[body["requests"][0]["custom_id"].partition("_")[0]] += 1
        if self.refuse_creation:
            self.refuse_creation -= 1
            return web.json_response(_error("api_error", "made all the same"), status=500)
        return web.json_response(self.jobs[id_])

    async def _list(self, request: web.Request) -> web.Response:
        listed = list(reversed(self.jobs.values()))
        after = request.query.get("after_id")
        if after is not None:
            listed = listed[[one["id"] for one in listed].index(after) + 1 :]
        page = listed[:2]
        more = {"has_more": len(page) < len(listed), "first_id": None, "last_id": page[-1]["id"] if page else None}
        return web.json_response({"data": page, **more})

    async def _read(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["id"]]
        self._polled[job["id"]] += 1
        if job["processing_status"] != "ended" and self._polled[job["id"]] >= self.polls:
            await self._end(job, f"http://{request.host}")
        return web.json_response(job)

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["id"]]
        if job["processing_status"] == "in_progress":
            job["processing_status"] = "canceling"
        return web.json_response(job)

    async def _results(self, request: web.Request) -> web.Response:
        lines = "".join(json.dumps(one) + "\n" for one in self.results[request.match_info["id"]])
        return web.Response(text=lines, content_type="application/x-jsonl")

    async def _end(self, job: dict[str, Any], host: str) -> None:
        number = list(self.jobs).index(job["id"])
        end = self.ends[number] if number < len(self.ends) else "completed"
        kind, _, amount = end.partition(":")
        if job["processing_status"] == "canceling":
            kind = "cancelled"
        requests = self.requests[job["id"]]
        done = int(amount or 0) if kind in ("expired", "cancelled") else len(requests)
        kept = len(requests) - int(amount) if kind == "lost" else len(requests)
        results, counts = [], Counter[str]()
        for place, one in enumerate(requests):
            found = await self._respond(one["params"]) if place < done and place < kept else None
            if found is None:
                left = "expired" if kind == "expired" else "canceled" if kind == "cancelled" else "errored"
                result: dict[str, Any] = {"type": left}
                if left == "errored":
                    result["error"] = _error("api_error", "it failed")
            elif found[0] == 200:
                result = {"type": "succeeded", "message": found[1]}
            else:
                result = {"type": "errored", "error": found[1]}
            counts[result["type"]] += 1
            if place < kept:
                results.append({"custom_id": one["custom_id"], "result": result})
        self.results[job["id"]] = list(reversed(results))
        job["request_counts"] = _counts(**counts)
        job["processing_status"] = "ended"
        job["ended_at"] = datetime.now(UTC).isoformat()
        job["results_url"] = f"{host}/v1/messages/batches/{job['id']}/results"


def _counts(**given: int) -> dict[str, int]:
    return dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0) | given


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}
