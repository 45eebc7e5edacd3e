"""Speed and memory of training: Stillhouse with stored labels and with a live teacher, and TRL's GKD.

The teacher is the demo teacher, the student 10 of its layers, float32, on the CPU. The rows ask for several words of the
glossary at once; their completions are its references, which `stillhouse label` scores, once per encoding in every round.
Every training is a new process (`step_stillhouse.py`, `step_trl.py`) in every round, each round in a different order; all
use the same rows in the same order. Ratios are computed within a round, because the speed of a shared machine varies.

The comparison with TRL, which has no cross-entropy, uses the forward KL only. The comparison with cross-entropy, and the
number of epochs after which stored labels pay off against a live teacher, use a recipe's default loss: forward KL plus
cross-entropy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.shared import MIB, PYTHON, ROOT, STILLHOUSE, in_turn, measured_on, run, scratch, table, versions_of

TEACHER = ROOT / "data/models/smollm2-135m-instruct"
GLOSSARY = ROOT / "prompts/glossary.jsonl"
TRL_PYTHON = ROOT / ".venv-trl/bin/python"
LAYERS, BATCH, WORDS = 10, 8, 6  # words: of the glossary, per row
SOFT = {"top-k": {"encoding": "top-k", "k": 32}, "sampled": {"encoding": "sampled", "draws": 50}}


@dataclass(frozen=True)
class Way:
    """One training to compare."""

    name: str
    module: str
    way: str  # as in `stepping.Task`
    labels: str = "top-k"  # the dataset that it reads
    kl_alone: bool = False  # without the cross-entropy that a recipe's loss has by default


CROSS_ENTROPY = Way("cross-entropy alone", "step_stillhouse", "cross-entropy")
TOP_K = Way("stored `top-k`, 32", "step_stillhouse", "stored")
SAMPLED = Way("stored `sampled`, 50 draws", "step_stillhouse", "stored", "sampled")
LIVE = Way("live teacher", "step_stillhouse", "live")
TOP_K_KL = Way("stored `top-k`, 32, KL alone", "step_stillhouse", "stored", kl_alone=True)
SAMPLED_KL = Way("stored `sampled`, 50 draws, KL alone", "step_stillhouse", "stored", "sampled", kl_alone=True)
LIVE_KL = Way("live teacher, KL alone", "step_stillhouse", "live", kl_alone=True)
TRL = Way("TRL `GKDTrainer`, live teacher, KL alone", "step_trl", "trl", kl_alone=True)
STORED = [TOP_K, SAMPLED]
WAYS = [CROSS_ENTROPY, *STORED, LIVE, TOP_K_KL, SAMPLED_KL, LIVE_KL, TRL]
RATIOS = [(TOP_K_KL, TRL, "1.5"), (SAMPLED_KL, TRL, "1.5"), (LIVE_KL, TRL, "")]
RATIOS += [(TOP_K, CROSS_ENTROPY, "0.9"), (SAMPLED, CROSS_ENTROPY, "0.9")]


@dataclass(frozen=True)
class Measured:
    """One training in one round."""

    rate: float  # tokens per second, prompts and completions
    busy: float  # processor seconds per step
    peak_bytes: int
    loss: float  # mean of all steps
    versions: dict[str, str]


@dataclass(frozen=True)
class Rows:
    """The token ids that all trainings use, in the dataset's order."""

    file: Path
    lengths: list[tuple[int, int]]  # tokens of prompt and completion

    def tokens(self, first: int, count: int) -> int:
        """Return the tokens (prompts and completions) of `count` steps from step `first`; epochs follow one another."""
        steps = -(-len(self.lengths) // BATCH)  # per epoch
        places = [place for step in range(first, first + count) for place in _rows_of(step % steps, len(self.lengths))]
        return sum(sum(self.lengths[place]) for place in places)


def _rows_of(step: int, rows: int) -> range:
    return range(step * BATCH, min((step + 1) * BATCH, rows))


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    warm_up, steps, rounds = (1, 2, 1) if small else (3, 12, 3)
    if not TRL_PYTHON.is_file():
        raise SystemExit(f"{TRL_PYTHON} is not there: `make bench-train` makes the virtual environment")
    with scratch() as folder:
        rows = prepare(folder, 16 if small else 96)
        counted = rows.tokens(warm_up, steps)
        results: list[dict[str, Measured]] = []
        labelled: list[dict[str, float]] = []
        for number in range(rounds):
            result = {}
            for way in in_turn(WAYS, number * 3):  # 3 and the number of ways, 8, are coprime
                told = _train(way, folder, rows.file, warm_up, steps)
                rate, busy = counted / told["seconds"], told["busy_seconds"] / steps
                result[way.name] = Measured(rate, busy, told["peak_bytes"], told["loss"], told["versions"])
                print(f"round {number + 1}: {way.name} {result[way.name].rate:,.0f} tokens a second", flush=True)
            _check_same(result[LIVE_KL.name].loss, result[TRL.name].loss)
            results.append(result)
            labelled.append({name: _label(folder, f"{name}-{number}", soft) for name, soft in SOFT.items()})
    return _section(results, labelled, rows, warm_up, steps)


def prepare(folder: Path, count: int) -> Rows:
    """Make the student and a dataset of each encoding; return their common rows as token ids."""
    _write_prompts(folder / "prompts.jsonl", count)
    for name, soft in SOFT.items():
        _label(folder, name, soft)
    told = run([PYTHON, "-m", "benchmarks.step_rows", folder, str(LAYERS)], folder / "log.txt").last_json
    return Rows(folder / "rows.json", [tuple(pair) for pair in told["lengths"]])


def _label(folder: Path, name: str, soft: dict[str, Any]) -> float:
    """Label all rows; return the seconds of the whole command, its start included."""
    return run([*STILLHOUSE, "label", _recipe(folder, name, soft), "--no-flow", "--json"], folder / "log.txt").seconds


def _write_prompts(file: Path, count: int) -> None:
    """Write prompts that ask for several words of the glossary each, with the glossary's sentences as references."""
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
        "kl_alone": way.kl_alone,
        "warm_up": warm_up,
        "steps": steps,
    }
    python = TRL_PYTHON if way is TRL else PYTHON
    return run([python, "-m", f"benchmarks.{way.module}", json.dumps(task)], folder / "log.txt").last_json


def _check_same(ours: float, theirs: float) -> None:
    """Check that both live-teacher trainings did the same work: they minimise the same loss, so the means must agree."""
    if abs(ours - theirs) > 0.01 * theirs:
        raise SystemExit(
            f"the mean loss with a live teacher is {ours} here, and {theirs} in TRL: they learn from unlike rows"
        )


def epochs_to_pay(labelling: float, stored: float, live: float) -> float:
    """Return after how many epochs stored labels cost less time than a live teacher; inf if their epochs are no faster.

    Args:
        labelling: seconds to label all rows.
        stored: seconds of an epoch with stored labels.
        live: seconds of an epoch with a live teacher.
    """
    return labelling / (live - stored) if live > stored else math.inf


def _section(
    results: Sequence[dict[str, Measured]], labelled: Sequence[dict[str, float]], rows: Rows, warm_up: int, steps: int
) -> str:
    mean = [sum(row[side] for row in rows.lengths) / len(rows.lengths) for side in (0, 1)]
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
            f"{warm_up} that do not count. The loss is what a recipe has by default, the forward KL and cross-entropy, or "
            "one of them alone; TRL with `lmbda=0`, `beta=0`: it learns from the same rows, and generates nothing. Tokens "
            f"are those of prompts and completions. Median of {len(results)} rounds; memory is the most resident memory of "
            "the process:",
            table(["training", "tokens/s", "processor seconds a step", "memory, MiB"], trainings),
            table(["ratio of tokens/s", "median", "least", "most", "wanted at least"], ratios),
            f"When stored labels pay: the seconds of the whole command that labels these {len(rows.lengths)} rows, those "
            "of an epoch of them, and the number of epochs after which both together are less than as many epochs with a "
            "live teacher. Labels are paid for once: the epochs of several trainings from one dataset add up.",
            table(
                ["labels", "to label, s", "an epoch, s", "with a live teacher, s", "pay after, epochs", "by round"],
                list(_pays(results, labelled, rows)),
            ),
            measured_on(versions_of("torch", "transformers")),
            f"*TRL with {trl}.*",
        ]
    )


def _pays(
    results: Sequence[dict[str, Measured]], labelled: Sequence[dict[str, float]], rows: Rows
) -> Iterator[list[str]]:
    """Yield the table row of each encoding."""
    tokens = sum(sum(pair) for pair in rows.lengths)
    for way in STORED:
        seconds = [
            (once[way.labels], tokens / result[way.name].rate, tokens / result[LIVE.name].rate)
            for once, result in zip(labelled, results, strict=True)
        ]
        epochs = [epochs_to_pay(*each) for each in seconds]
        figures = [f"{median(each):.1f}" for each in zip(*seconds, strict=True)]
        yield [way.name, *figures, f"{median(epochs):.1f}", ", ".join(f"{one:.1f}" for one in epochs)]
