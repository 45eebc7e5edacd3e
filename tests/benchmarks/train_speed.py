"""How fast a student learns, and in how much memory: Stillhouse from stored labels and with a live teacher, and TRL's GKD.

The demo teacher and 10 of its layers, float32, on the CPU. The rows ask for several words of the glossary at once; their
completions are its references, which `stillhouse label` scores, once with each encoding. Every training is a process of its
own (`step_stillhouse.py`, `step_trl.py`), fresh in every round, each round in another order; all take the same rows in the
same order. Ratios are taken within a round, since a shared machine is not equally fast in all of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.shared import MIB, PYTHON, ROOT, STILLHOUSE, measured_on, run, scratch, table, versions_of

TEACHER = ROOT / "data/models/smollm2-135m-instruct"
GLOSSARY = ROOT / "prompts/glossary.jsonl"
TRL_PYTHON = ROOT / ".venv-trl/bin/python"
LAYERS, BATCH, WORDS = 10, 8, 6  # words of the glossary in a row
SOFT = {"top-k": {"encoding": "top-k", "k": 32}, "sampled": {"encoding": "sampled", "draws": 50}}


@dataclass(frozen=True)
class Way:
    """One contender."""

    name: str
    module: str
    way: str  # as `stepping.Task` has it
    labels: str = "top-k"  # the dataset that it reads


CROSS_ENTROPY = Way("stillhouse, cross-entropy alone", "step_stillhouse", "cross-entropy")
TOP_K = Way("stillhouse, stored `top-k`, 32", "step_stillhouse", "stored")
SAMPLED = Way("stillhouse, stored `sampled`, 50 draws", "step_stillhouse", "stored", "sampled")
LIVE = Way("stillhouse, live teacher", "step_stillhouse", "live")
TRL = Way("TRL `GKDTrainer`, live teacher", "step_trl", "trl")
WAYS = [CROSS_ENTROPY, TOP_K, SAMPLED, LIVE, TRL]
RATIOS = [(TOP_K, TRL, "1.5"), (SAMPLED, TRL, "1.5"), (LIVE, TRL, "")]
RATIOS += [(TOP_K, CROSS_ENTROPY, "0.9"), (SAMPLED, CROSS_ENTROPY, "0.9")]


@dataclass(frozen=True)
class Measured:
    """One training in one round."""

    rate: float  # tokens a second, prompts and completions
    busy: float  # seconds of the processors a step
    peak_bytes: int
    loss: float  # the mean of all steps
    versions: dict[str, str]


@dataclass(frozen=True)
class Rows:
    """The token ids that all learn from, in the dataset's order."""

    file: Path
    lengths: list[tuple[int, int]]  # tokens of prompt and completion

    def tokens(self, first: int, count: int) -> int:
        """Of prompts and completions, in `count` steps from step `first` on; after the last row comes the first again."""
        steps = -(-len(self.lengths) // BATCH)  # of an epoch
        places = [place for step in range(first, first + count) for place in _rows_of(step % steps, len(self.lengths))]
        return sum(sum(self.lengths[place]) for place in places)


def _rows_of(step: int, rows: int) -> range:
    return range(step * BATCH, min((step + 1) * BATCH, rows))


def measure(small: bool) -> str:
    """The section, as Markdown."""
    warm_up, steps, rounds = (1, 2, 1) if small else (3, 12, 3)
    if not TRL_PYTHON.is_file():
        raise SystemExit(f"{TRL_PYTHON} is not there: `make bench-train` makes the virtual environment")
    with scratch() as folder:
        rows = prepare(folder, 16 if small else 96)
        counted = rows.tokens(warm_up, steps)
        results: list[dict[str, Measured]] = []
        for number in range(rounds):
            turn = number % len(WAYS)
            result = {}
            for way in [*WAYS[turn:], *WAYS[:turn]]:
                told = _train(way, folder, rows.file, warm_up, steps)
                rate, busy = counted / told["seconds"], told["busy_seconds"] / steps
                result[way.name] = Measured(rate, busy, told["peak_bytes"], told["loss"], told["versions"])
                print(f"round {number + 1}: {way.name} {result[way.name].rate:,.0f} tokens a second", flush=True)
            _check_same(result[LIVE.name].loss, result[TRL.name].loss)
            results.append(result)
        mean = [sum(row[side] for row in rows.lengths) / len(rows.lengths) for side in (0, 1)]
    return _section(results, mean, warm_up, steps)


def prepare(folder: Path, count: int) -> Rows:
    """The student, a dataset of each encoding, and the rows of both as token ids."""
    _write_prompts(folder / "prompts.jsonl", count)
    for name, soft in SOFT.items():
        recipe = _recipe(folder, name, soft)
        run([*STILLHOUSE, "label", recipe, "--no-flow", "--json"], folder / "log.txt")
    told = run([PYTHON, "-m", "tests.benchmarks.step_rows", folder, str(LAYERS)], folder / "log.txt").last_json
    return Rows(folder / "rows.json", [tuple(pair) for pair in told["lengths"]])


def _write_prompts(file: Path, count: int) -> None:
    """Prompts that ask for several words of the glossary, with its sentences on them."""
    words = [json.loads(line) for line in GLOSSARY.read_text(encoding="utf-8").splitlines()]
    with file.open("w", encoding="utf-8") as lines:
        for number in range(count):
            chosen = [words[(number * WORDS + place) % len(words)] for place in range(WORDS)]
            asked = f"Say in one sentence each what these are: {', '.join(word['word'] for word in chosen)}."
            row = {"prompt": f"{asked} ({number})", "reference": " ".join(word["reference"] for word in chosen)}
            lines.write(json.dumps(row) + "\n")


def _recipe(folder: Path, name: str, soft: dict[str, Any]) -> Path:
    recipe = {
        "name": name,
        "prompts": {"source": str(folder / "prompts.jsonl"), "holdout": 0},
        "teacher": {"kind": "transformers", "model": str(TEACHER), "options": {"batch_size": 16, "device": "cpu"}},
        "label": {"mode": "score", "soft": soft},
        "dataset": {"root": str(folder / "labels"), "name": name},
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML too
    return file


def _train(way: Way, folder: Path, rows: Path, warm_up: int, steps: int) -> dict[str, Any]:
    task = {
        "way": way.way,
        "teacher": str(TEACHER),
        "student": str(folder / "student"),
        "dataset": str(folder / "labels" / way.labels),
        "rows": str(rows),
        "batch": BATCH,
        "warm_up": warm_up,
        "steps": steps,
    }
    python = TRL_PYTHON if way is TRL else PYTHON
    return run([python, "-m", f"tests.benchmarks.{way.module}", json.dumps(task)], folder / "log.txt").last_json


def _check_same(ours: float, theirs: float) -> None:
    """With a live teacher both minimise the same, so that their losses show whether they did the same work."""
    if abs(ours - theirs) > 0.01 * theirs:
        raise SystemExit(
            f"the mean loss with a live teacher is {ours} here, and {theirs} in TRL: they learn from unlike rows"
        )


def _section(results: Sequence[dict[str, Measured]], mean: Sequence[float], warm_up: int, steps: int) -> str:
    trainings = []
    for way in WAYS:
        each = [result[way.name] for result in results]
        rate, busy = median(one.rate for one in each), median(one.busy for one in each)
        peak = median(one.peak_bytes for one in each)
        trainings.append([way.name, f"{rate:,.0f}", f"{busy:.2f}", f"{peak / MIB:,.0f}"])
    ratios = []
    for one, other, wanted in RATIOS:
        found = [result[one.name].rate / result[other.name].rate for result in results]
        ratios.append([f"{one.name} / {other.name}", *(f"{f(found):.2f}" for f in (median, min, max)), wanted])
    trl = ", ".join(f"{package} {number}" for package, number in results[0][TRL.name].versions.items())
    return "\n\n".join(
        [
            f"The demo teacher (30 layers) and {LAYERS} of its layers as the student, float32, on the CPU; {BATCH} rows a "
            f"step, of {mean[0]:.0f} tokens of prompt and {mean[1]:.0f} of completion in the mean; {steps} steps after "
            f"{warm_up} that do not count. The forward KL alone; TRL with `lmbda=0`, `beta=0`: it learns from the same "
            f"rows, and generates nothing. Tokens are those of prompts and completions. Median of {len(results)} rounds; "
            "memory is the most resident memory of the process:",
            table(["training", "tokens/s", "processor seconds a step", "memory, MiB"], trainings),
            "What the labels cost before is not in it: one pass of the teacher along each text.",
            table(["ratio of tokens/s", "median", "least", "most", "wanted at least"], ratios),
            measured_on(versions_of("torch", "transformers")),
            f"*TRL with {trl}.*",
        ]
    )
