"""Time to decode one large answer of vLLM into arrays: 512 tokens with the top 50 of each.

    python -m benchmarks.vllm decode

The two baselines only make arrays of the token ids and log-probabilities. `read_generated` also checks and sorts them, sums
each row to get the tail mass, and reads the other fields of the answer. The three alternate, ten answers each, so that
other load on the machine slows all alike.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from benchmarks.shared import in_turn, measured_on, table, versions_of
from stillhouse.teachers.serving.vllm_answers import read_generated

TIME, K, VOCABULARY = 512, 50, 49_152
ROUNDS, ANSWERS = 20, 10  # rounds, and answers per round
WANTED = 8.0  # target: times as fast as json and the obvious conversion


def answer() -> bytes:
    """Return an answer in the server's format, with random distributions; every other token is drawn from all tokens."""
    random = np.random.default_rng(0)
    rows = []
    for position in range(TIME):
        logits = random.normal(size=VOCABULARY) * 3
        logprobs = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
        top = np.argsort(-logprobs)[:K].tolist()
        chosen = int(random.integers(VOCABULARY)) if position % 2 else top[position % 7]
        rows.append({f"token_id:{token}": float(logprobs[token]) for token in [chosen, *top]})
    tokens = [next(iter(row)) for row in rows]
    logprobs_of = {
        "text_offset": list(range(TIME)),
        "token_logprobs": [next(iter(row.values())) for row in rows],
        "tokens": tokens,
        "top_logprobs": rows,
    }
    choice = {"index": 0, "text": "word " * TIME, "logprobs": logprobs_of, "finish_reason": "length"}
    choice |= {"token_ids": [int(token[9:]) for token in tokens], "prompt_token_ids": list(range(100))}
    return orjson.dumps({"choices": [choice], "usage": {"completion_tokens": TIME}, "system_fingerprint": None})


def _arrays(data: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Convert in the obvious way, for the baselines."""
    rows = data["choices"][0]["logprobs"]["top_logprobs"]
    ids = np.array([int(name[9:]) for row in rows for name in row], np.int32)
    return ids, np.array([value for row in rows for value in row.values()], np.float32)


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    rounds = 1 if small else ROUNDS
    content = answer()
    ways: dict[str, Callable[[], object]] = {
        "`json.loads`, then arrays": lambda: _arrays(json.loads(content)),
        "`orjson.loads`, then arrays": lambda: _arrays(orjson.loads(content)),
        "`read_generated`": lambda: read_generated(content, K),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in in_turn(ways.items(), number):
            for _ in range(ANSWERS):
                began = time.perf_counter()
                way()
                spent[name].append(1000 * (time.perf_counter() - began))
    medians = {name: statistics.median(each) for name, each in spent.items()}
    json_, orjson_, _ = medians.values()
    rows = [
        [name, f"{median:.2f}", f"{min(spent[name]):.2f}", f"{json_ / median:.1f}", f"{orjson_ / median:.1f}"]
        for name, median in medians.items()
    ]
    return "\n\n".join(
        [
            f"One answer of {TIME} tokens with the top {K} of each, {len(content):,} bytes, into arrays: {rounds} turns of "
            f"{ANSWERS} answers each, begun with another way each time (wanted: {WANTED:g} times as fast as `json`).",
            table(["", "median, ms", "least, ms", "times `json`'s speed", "times `orjson`'s speed"], rows),
            measured_on(versions_of("numpy", "pyarrow", "orjson")),
        ]
    )
