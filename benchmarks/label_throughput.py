"""Completions per second against one server: a bare loop, `stillhouse label`, curator, distilabel.

The stand-in server runs in a separate process, a new one for every measurement, and answers each request after 50 ms. All
clients send the same 5,000 prompts with at most 128 requests in flight, one client after another, in three rounds, each in
a different order. Ratios are computed within a round, because the speed of a shared machine varies.

The clients are the modules `ask_*.py`; their docstrings state what is timed and how each is set up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.shared import PYTHON, ROOT, in_turn, measured_on, run, scratch, serving, table, write_prompts

LATENCY = 0.05
CONCURRENCY = 128


@dataclass(frozen=True)
class Client:
    """One client to compare."""

    name: str
    module: str
    python: Path
    keeps: str  # what it keeps of an answer before the run has ended
    wanted: float | None = None  # target: minimum of Stillhouse's rate / this client's rate


@dataclass(frozen=True)
class Measured:
    """One client in one round; rates are completions per second."""

    call: float  # from the client's call to its result
    asking: float  # from the first request to the last answer, seen by the server
    process: float  # from the start of the process to its end
    most_at_once: int
    versions: dict[str, str]


STILLHOUSE = Client("stillhouse label", "ask_stillhouse", Path(PYTHON), "each answer, fsynced")
OTHERS = [
    Client("bare aiohttp loop", "ask_bare", Path(PYTHON), "nothing", wanted=0.5),
    Client("curator", "ask_curator", ROOT / ".venv-curator/bin/python", "each answer, not fsynced", wanted=3.0),
    Client("distilabel", "ask_distilabel", ROOT / ".venv-distilabel/bin/python", "batches, not fsynced", wanted=12.0),
]
CLIENTS = [STILLHOUSE, *OTHERS]


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    prompts, rounds = (500, 1) if small else (5000, 3)
    missing = [str(client.python) for client in CLIENTS if not client.python.is_file()]
    if missing:
        raise SystemExit(f"{', '.join(missing)} is not there: `make bench-label` makes the virtual environments")
    results: list[dict[str, Measured]] = []
    for number in range(rounds):
        order = in_turn(CLIENTS, number)
        results.append({client.name: _measure(client, prompts, number + 1) for client in order})
    return _section(results, prompts)


def _measure(client: Client, prompts: int, number: int) -> Measured:
    with scratch() as folder, serving(LATENCY, folder / "server.log") as server:
        file = write_prompts(folder / "prompts.jsonl", prompts)
        own = folder / "client"
        own.mkdir()
        module = f"benchmarks.{client.module}"
        arguments = ["--base-url", server.base_url, "--prompts", file, "--concurrency", str(CONCURRENCY)]
        ended = run([client.python, "-m", module, *arguments, "--folder", own], folder / "client.log")
        told, stats, span = ended.last_json, server.stats(), server.span()
    if (told["rows"], stats["billed"], stats["prompts"]) != (prompts, prompts, prompts):
        raise SystemExit(f"{client.name}: {told['rows']} rows of {prompts} prompts, and the server counted {stats}")
    asking = prompts / (span["last"] - span["first"])
    print(f"round {number}: {client.name} {prompts / told['seconds']:,.0f} completions a second", flush=True)
    return Measured(prompts / told["seconds"], asking, prompts / ended.seconds, stats["most_at_once"], told["versions"])


def _section(results: list[dict[str, Measured]], prompts: int) -> str:
    clients = []
    for client in CLIENTS:
        each = [result[client.name] for result in results]
        rates = [median(getattr(one, name) for one in each) for name in ("call", "asking", "process")]
        most = max(one.most_at_once for one in each)
        clients.append([client.name, *(f"{rate:,.0f}" for rate in rates), str(most), client.keeps])
    ratios = []
    for client in OTHERS:
        by_round = [result[STILLHOUSE.name].call / result[client.name].call for result in results]
        cells = [f"{median(by_round):.2f}", ", ".join(f"{ratio:.2f}" for ratio in by_round), f"{client.wanted:g}"]
        ratios.append([f"stillhouse label / {client.name}", *cells])
    versions = [f"{client.name} with {_versions(results[0][client.name].versions)}" for client in OTHERS[1:]]
    return "\n\n".join(
        [
            f"{prompts:,} prompts, at most {CONCURRENCY} requests in flight, a server in a process of its own that answers "
            f"after {LATENCY * 1000:.0f} ms (so no client can pass {CONCURRENCY / LATENCY:,.0f}). Completions a second, "
            f"median of {len(results)} rounds:",
            table(
                [
                    "client",
                    "call to result",
                    "first request to last answer",
                    "whole process",
                    "most in flight",
                    "kept before the end",
                ],
                clients,
            ),
            "*Call to result* is what the client's own call takes, and what the ratios are of. For Stillhouse that is "
            "reading and planning the prompts, all requests, journal, Parquet files, card and manifest; for curator "
            "`llm(prompts)`; for distilabel `pipeline.run()`, with the start of its workers; for the loop the requests "
            "alone. *First request to last answer* is what the server saw. *Whole process* adds Python's start and the "
            "imports to the call.",
            table(["ratio", "median", "by round", "wanted"], ratios),
            measured_on(results[0][STILLHOUSE.name].versions | results[0][OTHERS[0].name].versions),
            f"*{'; '.join(versions)}.*",
        ]
    )


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in versions.items())
