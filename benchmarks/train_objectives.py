"""Held-out KL of students that learn from more or less of the teacher's distribution, after the same steps and data.

Compared are cross-entropy on the teacher's text, the top 12 renormalised (the usual mistake), 50 random draws, and a live
teacher's full distribution. The question is how much of the full distribution's gain over cross-entropy the others recover.
`train_students.py` does all the work, in a separate process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from benchmarks.shared import PYTHON, measured_on, run, scratch, table, versions_of

WANTED = 95  # target: % of the gain, from 50 draws
CROSS_ENTROPY, FULL = "cross-entropy", "full"
NAMES = {
    CROSS_ENTROPY: "cross-entropy alone",
    "renormalised-12": "top-12, renormalised to 1",
    "sampled-50": "`sampled`, 50 draws",
    FULL: "the full distribution, live",
}


@dataclass(frozen=True)
class Setting:
    """A group of students that are compared with each other."""

    name: str
    frozen: bool  # whether embedding and head keep the teacher's weights
    ways: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The students to train, the amount of data, and the settings of the training."""

    settings: tuple[Setting, ...]
    layers: int = 6
    prompts: int | None = None  # of the glossary; None: all
    samples: int = 8  # completions per prompt, each seen once
    batch: int = 16
    learning_rate: float = 1e-3
    max_tokens: int = 40


WHOLE = Plan(
    (
        Setting("embedding and head as they are the teacher's", True, tuple(NAMES), (0, 1, 2)),
        Setting("all weights trained", False, tuple(NAMES), (0,)),
    )
)
SMALL = Plan(tuple(Setting(one.name, one.frozen, one.ways, (0,)) for one in WHOLE.settings), 2, 24, 1, 4)


def plan_of(text: str) -> Plan:
    """Return a plan from JSON, the argument of `train_students.py`."""
    given = json.loads(text)
    settings = tuple(
        Setting(one["name"], one["frozen"], tuple(one["ways"]), tuple(one["seeds"])) for one in given.pop("settings")
    )
    return Plan(settings, **given)


@dataclass(frozen=True)
class Student:
    """The results of one student."""

    setting: str
    way: str
    seed: int
    kl: float  # to the teacher's full distribution, nats per held-out token
    steps: int
    seconds: float


def recovered(students: Sequence[Student], way: str) -> list[float]:
    """Return the share, in %, of the full distribution's gain over cross-entropy, by seed, for students of one setting."""
    kl = {(student.way, student.seed): student.kl for student in students}
    seeds = sorted({student.seed for student in students})
    return [
        100 * (kl[CROSS_ENTROPY, seed] - kl[way, seed]) / (kl[CROSS_ENTROPY, seed] - kl[FULL, seed]) for seed in seeds
    ]


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    plan = SMALL if small else WHOLE
    with scratch() as folder:
        command = [PYTHON, "-m", "benchmarks.train_students", json.dumps(asdict(plan))]
        told = run(command, folder / "log.txt").last_json
    students = [Student(**one) for one in told["students"]]
    parts = [part for setting in plan.settings for part in _setting(setting, students)]
    return "\n\n".join([_about(plan, told, students), *parts, measured_on(versions_of("torch", "transformers"))])


def _about(plan: Plan, told: dict[str, Any], students: Sequence[Student]) -> str:
    return (
        f"The demo teacher wrote {told['rows']:,} completions of the glossary's prompts, {told['tokens']:,} tokens, at "
        f"temperature 1; the students, {plan.layers} of its layers, see each once, {plan.batch} rows a step in "
        f"{students[0].steps} steps, AdamW at {plan.learning_rate:g} with a cosine schedule, float32, on "
        f"{told['device']}. The forward KL at temperature 1, with no cross-entropy beside it. Held out: "
        f"{told['held_out_tokens']:,} tokens of {told['held_out_prompts']} "
        f"other prompts; KL(teacher || student) over the whole vocabulary, nats a token, of the untrained student "
        f"{told['untrained']:.2f}. A seed stands for the order of the rows and for the draws. *Recovered* is the share of "
        f"what the full distribution gains over cross-entropy (wanted of 50 draws: {WANTED} %)."
    )


def _setting(setting: Setting, students: Sequence[Student]) -> tuple[str, str]:
    """Return the title of a setting, and the table of its students."""
    own = [student for student in students if student.setting == setting.name]
    rows = []
    for way in setting.ways:
        of_way = [student for student in own if student.way == way]
        shares = recovered(own, way)
        cells = [", ".join(f"{student.kl:.3f}" for student in of_way), f"{mean(s.kl for s in of_way):.3f}"]
        share = [f"{mean(shares):.1f}", ", ".join(f"{one:.1f}" for one in shares)]
        if way in (CROSS_ENTROPY, FULL):
            share = [f"{mean(shares):.0f}", ""]
        rows.append([NAMES[way], *cells, *share, f"{mean(s.seconds for s in of_way):.0f}"])
    headers = ["learnt from", "held-out KL by seed", "mean", "recovered, %", "by seed", "seconds, mean"]
    return f"{setting.name[0].upper()}{setting.name[1:]}:", table(headers, rows)
