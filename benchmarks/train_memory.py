"""Memory of the loss, with the vocabulary and the number of tokens of a real training: in chunks, and whole.

Each figure is from a separate process (`train_loss.py`): with the head's weights, hidden states, targets and labels in
memory, it computes the loss forward and backward; the figure is the peak memory minus the memory before. "In chunks" is as
in training (`stillhouse.student.training.forward.chunked_loss`); "whole" is the same call with all tokens in one chunk,
so that nothing is computed twice. Both include the gradient of the head's weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.shared import MIB, PYTHON, measured_on, run, scratch, table, versions_of

WANTED = 6  # target: whole / in chunks
SPARE = 2 << 30  # bytes of memory to leave free


@dataclass(frozen=True)
class Case:
    """One loss, and the number of tokens to compute it on."""

    name: str
    labels: str | None  # top-k or sampled; None: cross-entropy
    entries: int  # label entries per token
    copies: int  # upper bound of the copies of the logits in memory at once if computed whole: see `fitting`
    tokens: int = 8192
    vocabulary: int = 128_256
    width: int = 1024
    chunk: int = 512


CASES = [
    Case("cross-entropy", None, 0, copies=4),
    Case("forward KL of `top-k`, 32, and cross-entropy", "top-k", 32, copies=6),
    Case("forward KL of `sampled`, 50 draws, and cross-entropy", "sampled", 13, copies=6),
]


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    cases = [replace(case, tokens=1024, vocabulary=16_032, chunk=64) if small else fitting(case) for case in CASES]
    with scratch() as folder:
        rows = [_row(case, folder / "log.txt") for case in cases]
    first = cases[0]
    return "\n\n".join(
        [
            f"A vocabulary of {first.vocabulary:,}, hidden states {first.width:,} wide, float32; forward and backward. "
            "Most resident memory of the process less what it had before the loss, MiB; seconds of one forward and "
            f"backward pass (wanted: {WANTED} times less memory in chunks):",
            table(
                [
                    "loss",
                    "tokens",
                    "whole, MiB",
                    f"chunks of {first.chunk}, MiB",
                    "times less",
                    "whole, s",
                    "in chunks, s",
                ],
                rows,
            ),
            f"The gradient of the head's weights, {4 * first.vocabulary * first.width / MIB:,.0f} MiB, is in both. Not in "
            "them: the weights, as much again, the hidden states and the labels. The logits of all tokens would be "
            f"{4 * first.vocabulary * first.tokens / MIB:,.0f} MiB, those of a chunk are "
            f"{4 * first.vocabulary * first.chunk / MIB:,.0f}. In chunks the head runs twice.",
            measured_on(versions_of("torch", "transformers")),
        ]
    )


def fitting(case: Case) -> Case:
    """Return the case with tokens reduced, by whole chunks, until it fits into free memory."""
    free = int(_meminfo("MemAvailable")) * 1024 - SPARE
    while 4 * case.vocabulary * (case.tokens * case.copies + 3 * case.width) > free:
        case = replace(case, tokens=case.tokens - case.chunk)
    return case


def _meminfo(name: str) -> str:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(name)).split()[1]


def _row(case: Case, log: Path) -> list[str]:
    whole, parts = (_told(one, log) for one in (replace(case, chunk=case.tokens), case))
    if abs(whole["loss"] - parts["loss"]) > 1e-4 * abs(whole["loss"]):
        raise SystemExit(f"{case.name}: the loss is {whole['loss']} whole, and {parts['loss']} in chunks")
    return [
        case.name,
        f"{case.tokens:,}",
        f"{whole['bytes'] / MIB:,.0f}",
        f"{parts['bytes'] / MIB:,.0f}",
        f"{whole['bytes'] / parts['bytes']:.1f}",
        f"{whole['seconds']:.0f}",
        f"{parts['seconds']:.0f}",
    ]


def _told(case: Case, log: Path) -> dict[str, Any]:
    told = run([PYTHON, "-m", "benchmarks.train_loss", json.dumps(asdict(case))], log).last_json
    print(f"{case.name}, {case.tokens:,} tokens, chunks of {case.chunk:,}: {told}", flush=True)
    return told
