"""What a student learns from more and less of the teacher's distribution: held-out KL after the same steps and data.

Cross-entropy on the teacher's text, the top 12 renormalised (the usual mistake), 50 random draws, and a live teacher's
whole distribution. What is looked for is how much of the whole distribution's gain over cross-entropy the others recover.
All the work is done in a process of its own, by `train_students.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from benchmarks.shared import PYTHON, measured_on, run, scratch, table, versions_of

WANTED = 95  # % of the gain, from 50 draws
CROSS_ENTROPY, FULL = "cross-entropy", "full"
NAMES = {
    CROSS_ENTROPY: "cross-entropy alone",
    "renormalised-12": "top-12, renormalised to 1",
    "sampled-50": "`sampled`, 50 draws",
    FULL: "the full distribution, live",
}


@dataclass(frozen=True)
class Setting:
    """Students that are compared with one another."""

    name: str
    frozen: bool  # whether embedding and head stay the teacher's own
    ways: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What is trained, on how much, how."""

    settings: tuple[Setting, ...]
    layers: int = 6
    prompts: int | None = None  # of the glossary; None: all
    samples: int = 8  # completions of a prompt, each seen once
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
    """A plan from JSON, as `train_students.py` is given it."""
    given = json.loads(text)
    settings = tuple(
        Setting(one["name"], one["frozen"], tuple(one["ways"]), tuple(one["seeds"])) for one in given.pop("settings")
    )
    return Plan(settings, **given)


@dataclass(frozen=True)
class Student:
    """What became of one student."""

    setting: str
    way: str
    seed: int
    kl: float  # from the teacher's whole distribution, nats a held-out token
    steps: int
    seconds: float


def recovered(students: Sequence[Student], way: str) -> list[float]:
    """The share of the full distribution's gain over cross-entropy, %, in each seed. The students are of one setting."""
    kl = {(student.way, student.seed): student.kl for student in students}
    seeds = sorted({student.seed for student in students})
    return [
        100 * (kl[CROSS_ENTROPY, seed] - kl[way, seed]) / (kl[CROSS_ENTROPY, seed] - kl[FULL, seed]) for seed in seeds
    ]


def measure(small: bool) -> str:
    """The section, as Markdown."""
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
    """A line on how these students were trained, and their table."""
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
