"""A small stand-in of the Hugging Face hub's HTTP API: what a push calls, and nothing else.

Repositories are held as files by path; a commit takes effect as a whole. Large files go through the LFS batch endpoint and
an upload of their bytes, whose checksum is held against the one that was announced.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_the-right-one"


@dataclass
class Repository:
    """One dataset repository."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.parquet filter=lfs\n"})
    commits: list[dict[str, Any]] = field(default_factory=list)


class Hub:
    """The state, and what tests set: `fail` gives a status for the first request whose path has the given words."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail: tuple[str, int] | None = None
        self.endpoint = ""

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, dict[str, Any] | bytes]:
        path = path.partition("?")[0]
        self.requests.append(f"{method} {path}")
        if self.fail and self.fail[0] in f"{method} {path}":
            return self.fail[1], {"error": f"refused, and your token is {token}"}
        if path.startswith("/upload/"):  # as the bucket behind the hub: signed, so without a token
            self.objects[hashlib.sha256(body).hexdigest()] = body
            return 200, b""
        if token != TOKEN:
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/validate-yaml":
            assert "---" in json.loads(body)["content"]
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.repositories[match[1]].files.get(match[2])
            return (404, {"error": "Entry not found"}) if content is None else (200, content)
        for pattern, act in (
            (r"/api/datasets/([^/]+/[^/]+)", self._info),
            (r"/api/datasets/([^/]+/[^/]+)/preupload/main", self._preupload),
            (r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._lfs_batch),
            (r"/api/datasets/([^/]+/[^/]+)/commit/main", self._commit),
        ):
            if match := re.fullmatch(pattern, path):
                return act(match[1], body)
        return 404, {"error": f"the stand-in has no {method} {path}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert asked["type"] == "dataset"
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this dataset repo", "url": f"{self.endpoint}/datasets/{name}"}
        self.repositories[name] = Repository(private=bool(asked.get("private")) or asked.get("visibility") == "private")
        return 200, {"url": f"{self.endpoint}/datasets/{name}", "name": name, "id": name}

    def _info(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        repository = self.repositories[name]
        siblings = [{"rfilename": path} for path in repository.files]
        return 200, {"id": name, "private": repository.private, "siblings": siblings, "sha": "0" * 40, "tags": []}

    def _preupload(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        files = [
            {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".parquet") else "regular"}
            for one in json.loads(body)["files"]
        ]
        return 200, {"files": [{**one, "shouldIgnore": False, "oid": None} for one in files]}

    def _lfs_batch(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        objects = []
        for one in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.endpoint}/upload/{one['oid']}", "header": {}}}
            known = one["oid"] in self.objects
            objects.append({"oid": one["oid"], "size": one["size"], **({} if known else {"actions": actions})})
        return 200, {"transfer": "basic", "objects": objects}

    def _commit(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        repository = self.repositories[name]
        files = dict(repository.files)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
                assert len(files[value["path"]]) == value["size"]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert entry["key"] == "header"
                repository.commits.append(value)
        repository.files = files
        oid = hashlib.sha1(body).hexdigest()
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.endpoint}/datasets/{name}/commit/{oid}"}


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The hub on a free port of this machine; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _act(self) -> None:
            body = self._body()
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            status, answer = hub.answer(self.command, self.path, body, token)
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            if status == 404 and isinstance(answer, dict) and "Repository" in answer["error"]:
                self.send_header("X-Error-Code", "RepoNotFound")
            if status >= 400 and isinstance(answer, dict):
                self.send_header("X-Error-Message", answer["error"])
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_HEAD = do_POST = do_PUT = _act  # noqa: N815  the names that the library looks for

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub.endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
