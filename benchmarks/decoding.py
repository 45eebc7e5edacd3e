"""Measure how fast a labelled dataset is opened and decoded into training batches, and the memory that this takes.

    python -m benchmarks.decoding                    # prints the tables
    python -m benchmarks.decoding --output docs/benchmarks.md

`dataset/writer.py` writes the datasets, with labels as ragged as those of a language model: each position follows a power
law with a random exponent, from nearly certain to nearly flat. A separate process, pinned to one core, then reads each
dataset once in a training's random order, from the files to padded tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.shared import MIB, PYTHON, measured_on, run, scratch, table, versions_of, write_section
from stillhouse.dataset.columns import completion_schema
from stillhouse.dataset.encodings import find_encoding
from stillhouse.dataset.store import open_dataset
from stillhouse.dataset.writer import Origin, new_version
from stillhouse.recipe.label import SoftSettings
from stillhouse.records import TeacherIdentity

VOCABULARY, DRAWS, K = 49_152, 50, 50
ROWS = 500  # per block; rows have 100 to 300 completion tokens
ROUNDS, BATCH = 3, 16
ANSWER_QUALITY_TITLE = 20  # samples of resident memory while a dataset is read


@dataclass(frozen=True)
class Kind:
    """One dataset to read."""

    soft: SoftSettings
    tokens: int  # completion tokens
    wanted: int  # target, tokens per second


KINDS = [
    Kind(SoftSettings(encoding="sampled", draws=DRAWS), 10_000_000, 500_000),
    Kind(SoftSettings(encoding="top-k", k=K), 3_000_000, 300_000),
]


# ---------------------------------------------------------------------------------------------------------- the datasets


def write_dataset(root: Path, kind: Kind, tokens: int) -> Path:
    """Write a dataset of about `tokens` completion tokens, in random blocks; return its folder."""
    origin = Origin(
        made_by="import",
        how="random labels",
        teacher=TeacherIdentity("transformers", "random", vocabulary_size=VOCABULARY),
        soft=kind.soft,
    )
    with new_version(root, kind.soft.encoding, origin) as version:
        written = 0
        while written < tokens:
            block = _block(np.random.default_rng(written), kind.soft, written)
            version.add("train", block)
            written += int(pc.sum(block["completion_tokens"]).as_py())
    return root / kind.soft.encoding


def _block(random: np.random.Generator, soft: SoftSettings, first: int) -> pa.RecordBatch:
    lengths, prompts = random.integers(100, 301, ROWS), random.integers(20, 81, ROWS)
    positions = int(lengths.sum())
    names = [f"{first}-{row}" for row in range(ROWS)]
    text = [[{"role": "user", "content": " ".join(f"word{n}" for n in random.integers(0, 999, n))}] for n in prompts]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    columns: dict[str, Any] = {
        "id": names,
        "prompt_id": names,
        "prompt": text,
        "completion": [
            [{"role": "assistant", "content": " ".join(f"word{n}" for n in random.integers(0, 999, n))}]
            for n in lengths
        ],
        "completion_tokens": lengths,
        "prompt_token_ids": list(np.split(_tokens(random, int(prompts.sum())), np.cumsum(prompts)[:-1])),
        "completion_token_ids": _lists(_tokens(random, positions), ends),
        "completion_logprobs": _lists(-random.exponential(2, positions).astype(np.float32), ends),
    }
    labels = _sampled(random, positions) if soft.encoding == "sampled" else _top_k(random, positions)
    columns |= {name: _lists(values, ends) for name, values in labels.items()}
    schema = completion_schema(soft=soft.encoding)
    arrays = [
        pa.nulls(ROWS, field.type)
        if field.name not in columns
        else column.cast(field.type)
        if isinstance(column := columns[field.name], pa.Array)
        else pa.array(column, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _tokens(random: np.random.Generator, count: int) -> npt.NDArray[np.int32]:
    return _named(np.minimum(random.zipf(1.3, count), VOCABULARY) - 1, 0)


def _named(ranks: npt.NDArray[np.int64], shift: Any) -> npt.NDArray[np.int32]:
    """Map ranks to token ids: a fixed shuffle of the vocabulary (the prime is coprime to its size), shifted by `shift`."""
    return ((ranks * 25_889 + shift) % VOCABULARY).astype(np.int32)


def _exponents(random: np.random.Generator, positions: int) -> npt.NDArray[np.float64]:
    """Return the exponents of the power laws, from nearly flat to nearly certain: (positions, 1)."""
    return 1.05 + random.exponential(1.5, (positions, 1))


def _sampled(random: np.random.Generator, positions: int) -> dict[str, Any]:
    powers = -1 / (_exponents(random, positions) - 1)
    with np.errstate(over="ignore"):
        ranks = np.minimum((1 - random.random((positions, DRAWS))) ** powers, VOCABULARY).astype(np.int64) - 1
    drawn = np.sort(_named(ranks, random.integers(0, VOCABULARY, (positions, 1))), axis=1)
    new = np.ones(drawn.shape, dtype=bool)
    new[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    ends = np.concatenate([[0], np.cumsum(new.sum(axis=1))])
    counts = np.diff(np.flatnonzero(np.append(new, True))).astype(np.uint16)
    return {"sampled_token_ids": _lists(drawn[new], ends), "sampled_counts": _lists(counts, ends)}


def _top_k(random: np.random.Generator, positions: int) -> dict[str, Any]:
    noise = random.normal(0, 0.3, (positions, K))
    weights = -np.sort(_exponents(random, positions) * np.log(np.arange(1, K + 1)) + noise, axis=1)
    tail = weights[:, -1] + np.log(random.uniform(1, 100, positions))
    total = np.logaddexp(np.log(np.exp(weights).sum(axis=1)), tail)
    ids = _named(np.arange(K), random.integers(0, VOCABULARY, (positions, 1)))
    ends = np.arange(0, positions * K + 1, K)
    logprobs = (weights - total[:, None]).astype(np.float16)
    return {
        "top_token_ids": _lists(ids.ravel(), ends),
        "top_logprobs": _lists(logprobs.ravel(), ends),
        "tail_logprob": (tail - total).astype(np.float32),
    }


def _lists(values: Any, ends: npt.NDArray[np.int64]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values))


# ------------------------------------------------------------------------------------------------------------ the reader


def read(folder: Path) -> dict[str, Any]:
    """Read a dataset once on one core; return the figures."""
    import torch

    from stillhouse.student.data.batches import collator
    from stillhouse.student.data.epoch_order import ShuffledSampler
    from stillhouse.student.data.examples import Examples
    from stillhouse.student.data.token_rows import TokenRows

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    torch.set_num_threads(1)
    pa.array([0])  # makes pyarrow import pandas now
    memory = [_resident()]
    began = time.perf_counter()
    dataset = open_dataset(folder)
    assert dataset.manifest.soft is not None
    rows = TokenRows(dataset, "train", VOCABULARY, find_encoding(dataset.manifest.soft.encoding))
    opened = time.perf_counter()
    examples = Examples(rows, max_length=100_000)
    measured = time.perf_counter()
    collate, busy = collator(0), time.process_time()
    tokens = places = 0
    for part in _parts(ShuffledSampler(examples, seed=0)):
        batch = collate([examples[index] for index in part])
        tokens += len(batch["soft_tail_logprob"])
        places += batch["soft_token_ids"].numel()
        if len(memory) < ANSWER_QUALITY_TITLE * tokens / int(dataset.manifest.totals.completion_tokens):
            memory.append(_resident())
    ended, busy = time.perf_counter(), time.process_time() - busy
    return {
        "tokens": tokens,
        "open": opened - began,
        "lengths": measured - opened,
        "read": ended - measured,
        "busy": busy,
        "memory": [memory[1], memory[len(memory) // 2], memory[-1], max(memory)],
        "imports": memory[0],
        "groups": len(rows.groups),
        "group_bytes": max(group.nbytes for group in rows.groups),
        "width": places / tokens,
        "disk": sum(entry.bytes for entry in dataset.manifest.files),
    }


def _parts(order: Iterator[int] | Any) -> Iterator[list[int]]:
    part: list[int] = []
    for index in order:
        part.append(index)
        if len(part) == BATCH:
            yield part
            part = []
    if part:
        yield part


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ----------------------------------------------------------------------------------------------------------- the section


def measure(small: bool = False) -> str:
    """Return the section as Markdown."""
    speed, memory = [], []
    with scratch() as folder:
        for kind in KINDS:
            place = write_dataset(folder, kind, 200_000 if small else kind.tokens)
            command = [PYTHON, "-m", "benchmarks.decoding", "--read", place]
            rounds = [run(command, folder / "log.txt").last_json for _ in range(1 if small else ROUNDS)]
            last = rounds[-1]
            name = f"`{kind.soft.encoding}`, {kind.soft.draws or kind.soft.k}"
            rates, clock = ([one["tokens"] / one[time_] for one in rounds] for time_ in ("busy", "read"))
            speed.append(
                [
                    name,
                    f"{last['tokens']:,}",
                    f"{last['disk'] / last['tokens']:.1f}",
                    f"{last['width']:.1f}",
                    f"{statistics.median(rates):,.0f}",
                    f"{kind.wanted:,}",
                    f"{statistics.median(clock):,.0f}",
                    f"{statistics.median(one['open'] for one in rounds):.3f}",
                    f"{statistics.median(one['lengths'] for one in rounds):.2f}",
                ]
            )
            held = [f"{bytes_ / MIB:,.0f}" for bytes_ in (last["imports"], *last["memory"])]
            memory.append([name, f"{last['groups']}", f"{last['group_bytes'] / MIB:,.0f}", *held])
    return "\n\n".join(
        [
            f"From Parquet files on the disk to padded tensors, in random order, {BATCH} rows a batch, on one core; median "
            f"of {ROUNDS} processes. Tokens are completion tokens, each with its labels. A second is one of processor "
            "time; by the clock it is longer where others use the machine too. *Opening* reads the manifest and the "
            "footers (wanted: less than a second), *lengths* are those of all rows.",
            table(
                [
                    "labels",
                    "tokens",
                    "bytes a token on disk, all columns",
                    "places a token, padded",
                    "tokens/s of the processor",
                    "wanted",
                    "by the clock",
                    "opening, s",
                    "lengths, s",
                ],
                speed,
            ),
            "Resident memory of the same process, MiB:",
            table(
                [
                    "labels",
                    "row groups",
                    "the largest, decoded",
                    "libraries",
                    "first batches",
                    "middle",
                    "end",
                    "most",
                ],
                memory,
            ),
            measured_on(versions_of("pyarrow", "numpy", "torch")),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the reading of labelled datasets.")
    parser.add_argument("--output", type=Path, help="the Markdown file with the sections; without it, only print")
    parser.add_argument("--small", action="store_true", help="small datasets, one round: try the script out")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read is not None:
        print(json.dumps(read(given.read)))
        return
    text = measure(given.small)
    if given.output is None:
        print(text)
    else:
        write_section("decoding", text, given.output)


if __name__ == "__main__":
    main()
