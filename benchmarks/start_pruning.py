"""Choices of layers and widths: the students' distance from their teacher, untrained and after equal training.

Compared are even spacing, block influence, leave-one-out and greedy removal at several depths; then layers only, widths
only and both, at about equal parameters. `start_students.py` does all the work, in a separate process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from benchmarks.shared import PYTHON, STILLHOUSE, measured_on, run, scratch, table, versions_of

CHOICES = ("even", "block-influence", "leave-one-out", "greedy")
_T_OF_THREE = 4.303  # Student's t, two degrees of freedom, 95 %


@dataclass(frozen=True)
class Plan:
    """The students to train, and the settings of the training."""

    depths: tuple[int, ...] = (24, 20, 16, 12, 8)
    equal: tuple[str, ...] = (
        '{"layers": 16}',
        '{"width": {"feed_forward": 768, "heads": 6}}',
        '{"layers": 22, "width": {"feed_forward": 984}}',
    )  # initial weights with about equal parameters
    seeds: tuple[int, ...] = (0, 1, 2)
    rows: int = 32  # rows that importance is measured on
    steps: int = 12
    batch: int = 8
    learning_rate: float = 5e-4
    prompts: int | None = None  # None: all prompts of the quickstart


WHOLE = Plan()
SMALL = Plan(depths=(24, 8), equal=WHOLE.equal[:2], seeds=(0,), rows=4, steps=1, prompts=24)


def plan_of(text: str) -> Plan:
    """Return a plan from JSON, the argument of `start_students.py`."""
    given: dict[str, Any] = json.loads(text)
    return Plan(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


@dataclass(frozen=True)
class Student:
    """The results of one choice of initial weights."""

    name: str  # the choice, or the `init` settings as JSON
    layers: tuple[int, ...]
    parameters: int
    untrained: float  # KL(teacher || student), nats per held-out token
    trained: tuple[float, ...]  # the same after training, by seed
    seconds: float  # mean time of a training


def interval(values: Sequence[float]) -> str:
    """Format the mean over three seeds with its 95 % interval by Student's t, as in `1.06 [1.02, 1.10]`."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    half = _T_OF_THREE * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.2f} [{mean(values) - half:.2f}, {mean(values) + half:.2f}]"


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    plan = SMALL if small else WHOLE
    with scratch() as folder:
        limit = [] if plan.prompts is None else ["--set", f"prompts.limit={plan.prompts}"]
        own = ["--set", f"dataset.root={folder / 'labels'}", "--set", "label.max_rejected=1", *limit]
        run([*STILLHOUSE, "label", "--no-flow", "flows/recipes/quickstart.yaml", *own], folder / "label.txt")
        command = [PYTHON, "-m", "benchmarks.start_students", json.dumps(asdict(plan)), str(folder / "labels")]
        told = run(command, folder / "log.txt").last_json
    return "\n\n".join([_about(plan, told), *_depths(told), *_equal(told), *_costs(told), _of_a_large_teacher()]) + (
        "\n\n" + measured_on(versions_of("torch", "transformers"))
    )


def _about(plan: Plan, told: dict[str, Any]) -> str:
    return (
        f"The demo teacher and its labels of the quickstart: {told['rows']} training rows, {told['held_out_tokens']:,} "
        f"held-out tokens of {told['held_out']} rows. Importance is measured on {plan.rows} of the training rows. Every "
        f"student is trained alike: forward KL from top-32 labels, {plan.steps} steps of {plan.batch} rows, AdamW at "
        f"{plan.learning_rate:g}, float32, the teacher's whole vocabulary. That is a short training, a third of the "
        "quickstart's: it compares starts, and is no student's best. Distances are KL(teacher || student) over the whole "
        f"vocabulary in nats a held-out token; {len(plan.seeds)} seeds, which order the rows, with 95 % intervals."
    )


def _students(told: dict[str, Any], part: str) -> list[Student]:
    return [Student(**{**one, "layers": tuple(one["layers"]), "trained": tuple(one["trained"])}) for one in told[part]]


def _depths(told: dict[str, Any]) -> list[str]:
    students = _students(told, "depths")
    depths = list(dict.fromkeys(len(one.layers) for one in students))
    parts = []
    for title, figure in (
        ("Untrained:", lambda one: f"{one.untrained:.2f}"),
        ("After equal training:", lambda one: interval(one.trained)),
    ):
        rows = []
        for depth in depths:
            of = {one.name: one for one in students if len(one.layers) == depth}
            rows.append([str(depth), f"{of['even'].parameters / 1e6:.1f} M", *(figure(of[name]) for name in CHOICES)])
        parts += [title, table(["layers", "parameters", *CHOICES], rows)]
    kept = [
        f"- {len(one.layers)}, {one.name}: {', '.join(map(str, one.layers))}"
        for one in students
        if one.name in ("leave-one-out", "greedy") and len(one.layers) in (16, 8)
    ]
    return [*parts, "Kept:", "\n".join(kept)]


def _equal(told: dict[str, Any]) -> list[str]:
    rows = [
        [one.name.replace('"', ""), f"{one.parameters / 1e6:.1f} M", f"{one.untrained:.2f}", interval(one.trained)]
        for one in _students(told, "equal")
    ]
    return [
        "At about equal parameters, layers by leave-one-out and widths by activations:",
        table(["start", "parameters", "untrained", "after equal training"], rows),
    ]


def _costs(told: dict[str, Any]) -> list[str]:
    rows = [[name, f"{one['seconds']:.0f}", f"{one['megabytes']:,.0f}"] for name, one in told["costs"].items()]
    return [
        f"What measuring costs on {told['measured_tokens']:,} tokens (prompts included), the teacher loaded already; peak "
        f"memory is the process's, {told['loaded_megabytes']:,.0f} MB of it before:",
        table(["measured", "seconds", "peak MB"], rows),
    ]


def _of_a_large_teacher() -> str:
    """Return a paragraph of computed (not measured) costs for a large teacher."""
    parameters, tokens, depth, speed = 8e9, 64 * 500, 32, 4e14
    one_pass = 2 * parameters * tokens / speed
    return (
        "By arithmetic, for a teacher of 8 billion parameters and 32 layers in bfloat16 on one GPU at 400 TFLOP/s, 64 rows "
        f"of 500 tokens: a forward pass is 2 * 8e9 * 32,000 = 5.1e14 operations, {one_pass:.1f} s; block influence is one "
        f"of them, leave-one-out {depth / 2 + 1:.0f} ({one_pass * (depth / 2 + 1):.0f} s), greedy removal of 16 layers "
        f"{depth / 2 + 1 + 3 * 16:.0f} ({one_pass * (depth / 2 + 1 + 48):.0f} s). Memory is the weights (16 GB) and "
        "what 32 layers give for a batch of 16 rows (2.1 GB)."
    )
