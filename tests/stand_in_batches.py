"""Batch jobs of the stand-in: OpenAI's files and batches, with every end that a job may have, and what each bills.

    with running_stand_in(batches=Batches(ends=["completed", "expired:3"])) as server: ...

The n-th job gets the n-th end, and later ones `completed`. A job ends when it has been asked for `polls` times. Its lines
are answered as single requests are: the prompts' words (stand_in.py) apply to them.

| end | what happens | billed |
| --- | --- | --- |
| `completed` | every line has a result, in shuffled order | the answered lines |
| `expired:N`, `cancelled:N` | the first N lines have one; the others have the error `batch_expired`, or none at all | N |
| `bad-line:N` | validation fails for line N, and the job with it | no |
| `queue` | the job fails: too many tokens are enqueued | no |
| `refused` | the job fails: the model has no batches | no |
| `lost:N` | completed, but N lines have no result | the others |
| `double` | completed, each line twice, and one that nobody asked | each once |
| `cut` | completed; the first download of the results ends in mid-line | all |
| `deleted` | completed; the file of the results is gone | all |
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Answer = Callable[[str, dict[str, Any], str], Awaitable[tuple[int, dict[str, Any]] | None]]
"""Answer one line, given the endpoint, the body and the prompt: status and body; None if it gets no result."""


@dataclass
class Batches:
    """The jobs and files of one account."""

    ends: list[str] = field(default_factory=list)
    polls: int = 1
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # id -> name, content
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)  # as the API has them, the oldest first
    submitted: Counter[str] = field(default_factory=Counter)  # jobs by our id, refused ones left out
    uploads: int = 0
    creation_seconds: float = 0.0  # that the creation of a job takes
    absent: bool = False  # a server without batch jobs
    refuse_creation: int = 0  # so many creations get 500 after the job was made
    _polled: Counter[str] = field(default_factory=Counter)
    _cut: set[str] = field(default_factory=set)  # files whose next download is cut off

    def routes(self, answer: Answer) -> list[web.RouteDef]:
        self._answer = answer
        return [
            web.post("/v1/files", self._upload),
            web.get("/v1/files", self._list_files),
            web.get("/v1/files/{id}/content", self._content),
            web.delete("/v1/files/{id}", self._delete),
            web.post("/v1/batches", self._create),
            web.get("/v1/batches", self._list),
            web.get("/v1/batches/{id}", self._read),
            web.post("/v1/batches/{id}/cancel", self._cancel),
        ]

    # ------------------------------------------------------------------------------------------------------------ files

    async def _upload(self, request: web.Request) -> web.Response:
        if self.absent:
            return _error(404, "Not Found")
        name, content = "", b""
        async for part in await request.multipart():
            if part.name == "file":
                name, content = part.filename or "", await part.read()
        self.uploads += 1
        id_ = self._store(name, content, f"file-in-{self.uploads}")
        return web.json_response(self._file(id_))

    async def _list_files(self, request: web.Request) -> web.Response:
        listed = [self._file(id_) for id_ in self.files if id_.startswith("file-in")]
        return web.json_response({"object": "list", "data": listed, "has_more": False})

    async def _content(self, request: web.Request) -> web.StreamResponse:
        id_ = request.match_info["id"]
        if id_ not in self.files:
            return _error(404, "No such File object")
        content = self.files[id_][1]
        if id_ in self._cut:
            self._cut.remove(id_)
            content = content[: len(content) * 2 // 3]
        return web.Response(body=content)

    async def _delete(self, request: web.Request) -> web.Response:
        id_ = request.match_info["id"]
        if self.files.pop(id_, None) is None:
            return _error(404, "No such File object")
        return web.json_response({"id": id_, "object": "file", "deleted": True})

    def _store(self, name: str, content: bytes, id_: str) -> str:
        self.files[id_] = (name, content)
        return id_

    def _file(self, id_: str) -> dict[str, Any]:
        name, content = self.files[id_]
        about = {"id": id_, "object": "file", "filename": name, "bytes": len(content)}
        return {**about, "created_at": 1, "purpose": "batch", "status": "processed"}

    # ------------------------------------------------------------------------------------------------------------- jobs

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(self.creation_seconds)
        if body["input_file_id"] not in self.files:
            return _error(400, "No such file")
        number = len(self.jobs) + 1
        id_ = f"batch-{number}"
        self.jobs[id_] = {
            "id": id_,
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"],
            "status": "validating",
            "created_at": number,
            "metadata": body.get("metadata"),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }
        self.submitted[(body.get("metadata") or {}).get("stillhouse_job", "")] += 1
        if self.refuse_creation:
            self.refuse_creation -= 1
            return _error(500, "made all the same")
        return web.json_response(self.jobs[id_])

    async def _list(self, request: web.Request) -> web.Response:
        listed = list(reversed(self.jobs.values()))
        after = request.query.get("after")
        if after is not None:
            listed = listed[[one["id"] for one in listed].index(after) + 1 :]
        page = listed[: min(2, int(request.query.get("limit", 20)))]  # small pages, so that there are several
        return web.json_response({"object": "list", "data": page, "has_more": len(page) < len(listed)})

    async def _read(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return _error(404, "No such batch")
        self._polled[job["id"]] += 1
        if job["status"] in ("validating", "in_progress", "cancelling"):
            job["status"] = "in_progress" if job["status"] == "validating" else job["status"]
            if self._polled[job["id"]] >= self.polls:
                await self._end(job)
        return web.json_response(job)

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["id"]]
        if job["status"] in ("validating", "in_progress"):
            job["status"] = "cancelling"
        return web.json_response(job)

    async def _end(self, job: dict[str, Any]) -> None:
        number = job["created_at"] - 1
        end = self.ends[number] if number < len(self.ends) else "completed"
        if job["status"] == "cancelling":
            end = f"cancelled:{end.partition(':')[2] or 0}"
        kind, _, amount = end.partition(":")
        lines = [json.loads(line) for line in self.files[job["input_file_id"]][1].splitlines()]
        refusals = {
            "bad-line": ("invalid_request", "the line is not valid", int(amount or 0)),
            "queue": ("token_limit_exceeded", "Enqueued token limit reached", None),
            "refused": ("model_not_found", "the model does not support the batch endpoint", None),
        }
        if kind in refusals:
            code, message, line = refusals[kind]
            job["status"] = "failed"
            job["errors"] = {"object": "list", "data": [{"code": code, "message": message, "line": line}]}
            return
        done = len(lines)
        if kind in ("expired", "cancelled"):
            done = int(amount)
        elif kind == "lost":
            done -= int(amount)
        output, errors = [], []
        for place, line in enumerate(lines):
            if place >= done:
                if kind == "expired":
                    gone = {"code": "batch_expired", "message": "This request was not executed in time."}
                    errors.append({"custom_id": line["custom_id"], "response": None, "error": gone})
                continue
            prompt = _prompt(line["body"])
            found = await self._answer(line["url"], line["body"], prompt)
            if found is not None:
                status, body = found
                response = {"status_code": status, "request_id": "r", "body": body}
                one = {"id": f"r{place}", "custom_id": line["custom_id"], "response": response, "error": None}
                (output if status == 200 else errors).append(one)
        if kind == "double":
            output = [*output, *output, {**output[0], "custom_id": "nobody"}]
        random.Random(number).shuffle(output)
        answered, failed = (len({one["custom_id"] for one in some} - {"nobody"}) for some in (output, errors))
        job["request_counts"] = {"total": len(lines), "completed": answered, "failed": failed}
        for name, some in (("output", output), ("error", errors)):
            if some:
                content = "".join(json.dumps(one) + "\n" for one in some).encode()
                job[f"{name}_file_id"] = id_ = self._store(
                    f"{job['id']}-{name}.jsonl", content, f"file-{name}-{job['id']}"
                )
                if kind == "cut" and name == "output":
                    self._cut.add(id_)
                if kind == "deleted" and name == "output":
                    del self.files[id_]
        job["status"] = kind if kind in ("expired", "cancelled") else "completed"


def _prompt(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=status)
