"""Rounds beside more epochs on the teacher's text, TRL's on-policy trainer, and a student of the stored rounds.

All continue from one student, with the same batches, learning rate and, but for TRL and the stored rounds, in the same
time: the rounds are run first, and the others take as many steps as fit into their seconds. Ways take turns: each seed
begins with another one. Intervals resample the held-out prompts; a prompt's figure is its mean over the seeds.

A seed takes half an hour. Its figures are kept in docs/on-policy.json, so that a run that was stopped continues with the
next seed; they are dropped if the settings of the comparison change.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.glosses_data import RECIPE, prepare
from benchmarks.on_policy_ways import BATCH, LEARNING_RATE, MAX_TOKENS, Plan, Training, first_recipe, plan_of
from benchmarks.shared import PYTHON, ROOT, STILLHOUSE, Ended, in_turn, measured_on, run, scratch, table, versions_of
from stillhouse.evaluation.measures.bootstrap import ratio_of_sums
from stillhouse.models.find import teacher_files

TRL_PYTHON = ROOT / ".venv-trl/bin/python"
FIGURES = ROOT / "docs/on-policy.json"
START, ROUNDS, HALF, EPOCHS, TRL, STORED, TEACHER = (
    "before",
    "rounds",
    "half and half",
    "more epochs",
    "TRL, GKD",
    "stored rounds",
    "teacher",
)
READ, SHOWN = 24, 8  # answers that are kept, and those in the section


@dataclass(frozen=True)
class Trained:
    """A trained student."""

    seconds: float
    gigabytes: float  # peak memory
    folder: str = ""  # while it exists


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    plan = plan_of(small)
    kept: dict[str, Any] = {} if small else _kept(plan)
    missing = [seed for seed in plan.seeds if str(seed) not in kept]
    if missing:
        with scratch() as folder:
            start, seconds_a_step = _first_student(folder, plan)
            rows = _prompts_for_trl(folder, plan)
            for seed in missing:
                base = Training("", seed, str(folder), str(start), "", plan.rounds, plan.prompts)
                kept[str(seed)] = _seed(folder, plan, base, rows, seconds_a_step)
                if not small:
                    FIGURES.write_text(
                        json.dumps({"settings": _settings(plan), "seeds": kept}) + "\n", encoding="utf-8"
                    )
    return _section(plan, [kept[str(seed)] for seed in plan.seeds])


def _seed(folder: Path, plan: Plan, base: Training, rows: Path, seconds_a_step: float) -> dict[str, Any]:
    """Train every way with one seed, and measure the students, the one before and the teacher."""
    made = {ROUNDS: _train(base, ROUNDS, folder)}
    steps = round(made[ROUNDS].seconds / seconds_a_step)
    after: dict[str, Callable[[], Trained]] = {
        HALF: lambda: _train(replace(base, prompts=plan.prompts_of_both), HALF, folder),
        EPOCHS: lambda: _train(replace(base, steps=steps), EPOCHS, folder),
        TRL: lambda: _train_trl(base, rows, folder),
        STORED: lambda: _train(base, STORED, folder),
    }
    for way in in_turn(after, base.seed):
        made[way] = after[way]()
    figures = _measure(folder, plan, [base.start, *(one.folder for one in made.values())])
    for one in figures.values():
        one["texts"] = one["texts"][:READ]
    return {
        "measured": measured_on(versions_of("torch", "transformers", "accelerate") | {"trl": "1.16.0"}),
        "trained": {way: asdict(replace(one, folder="")) for way, one in made.items()},
        "models": {START: figures[base.start], **{way: figures[one.folder] for way, one in made.items()}}
        | {TEACHER: figures["teacher"]},
    }


def _settings(plan: Plan) -> str:
    """Return a hash of what a seed's figures depend on: the plan, the recipe and the ways."""
    sources = [RECIPE, "benchmarks/on_policy_ways.py", "benchmarks/on_policy_train.py", "benchmarks/on_policy_trl.py"]
    sources += ["benchmarks/on_policy_measure.py", "benchmarks/glosses_data.py"]
    texts = [(ROOT / one).read_text(encoding="utf-8") for one in sources]
    return hashlib.sha256(json.dumps([asdict(plan), *texts]).encode()).hexdigest()


def _kept(plan: Plan) -> dict[str, Any]:
    """Return the figures of the seeds that were measured with these settings."""
    if not FIGURES.is_file():
        return {}
    told = json.loads(FIGURES.read_text(encoding="utf-8"))
    seeds: dict[str, Any] = told["seeds"] if told["settings"] == _settings(plan) else {}
    return seeds


def _section(plan: Plan, seeds: Sequence[Mapping[str, Any]]) -> str:
    trained = {way: [Trained(**one["trained"][way]) for one in seeds] for way in seeds[0]["trained"]}
    ways = {way: [one["models"][way] for one in seeds] for way in seeds[0]["models"]}
    return "\n\n".join(
        [
            _about(plan),
            _table(ways, trained),
            "Ratios to the student before, and of the rounds' time to TRL's:",
            _ratios(ways, trained),
            "The same prompts, greedy:",
            _answers(ways),
            *dict.fromkeys(one["measured"] for one in seeds),
        ]
    )


# ------------------------------------------------------------------------------------------------------------- trainings


def _first_student(folder: Path, plan: Plan) -> tuple[Path, float]:
    """Label the dataset and train the first student; return its folder, and its seconds a step."""
    file = folder / "recipe.yaml"
    recipe = first_recipe(folder, plan.source_limit)
    file.write_text(recipe.as_yaml(), encoding="utf-8")
    prepare()
    for stage in ("finetune", "label", "distill"):
        run([*STILLHOUSE, stage, file, "--no-flow"], folder / "log.txt")
    student = folder / "students" / recipe.name / "white-box"
    card = json.loads((student / "student.json").read_text(encoding="utf-8"))
    return student, card["seconds"] / card["steps"]


def _train(base: Training, way: str, folder: Path) -> Trained:
    out = folder / f"{way.replace(' ', '-')}-{base.seed}"
    if way == STORED:
        datasets = folder / f"{ROUNDS}-{base.seed}"
    else:
        datasets = out
        shutil.copytree(folder / "labels", out / "labels")
    training = replace(base, way=way, folder=str(datasets), out=str(out))
    command = [PYTHON, "-m", "benchmarks.on_policy_train", training.as_argument()]
    return _trained(run(command, folder / "log.txt"))


def _train_trl(base: Training, rows: Path, folder: Path) -> Trained:
    task = asdict(base) | {
        "out": str(folder / f"trl-{base.seed}"),
        "teacher": str(teacher_files(first_recipe(folder)).folder),
        "rows": str(rows),
        "lmbda": 1.0,
        "max_tokens": MAX_TOKENS,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "steps": base.rounds * base.prompts // BATCH,
    }
    return _trained(run([TRL_PYTHON, "-m", "benchmarks.on_policy_trl", json.dumps(task)], folder / "log.txt"))


def _trained(ended: Ended) -> Trained:
    told = ended.last_json
    return Trained(told["seconds"], ended.peak_bytes / 1e9, told["folder"])


def _prompts_for_trl(folder: Path, plan: Plan) -> Path:
    """Write the training rows of the dataset as token ids."""
    from stillhouse.stages.stages import recipe_dataset

    table_ = recipe_dataset(first_recipe(folder)).to_table("train").select(["prompt_token_ids", "completion_token_ids"])
    rows = [
        {"prompt": row["prompt_token_ids"], "completion": row["completion_token_ids"]} for row in table_.to_pylist()
    ]
    file = folder / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def _measure(folder: Path, plan: Plan, students: Sequence[str]) -> dict[str, Any]:
    command = [PYTHON, "-m", "benchmarks.on_policy_measure", folder, str(plan.held_out), *students]
    return run(command, folder / "log.txt").last_json


# --------------------------------------------------------------------------------------------------------------- figures


def _figure(seeds: Sequence[Mapping[str, Any]], name: str, column: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return numerators and denominators of a figure by prompt, summed over the seeds: two of (prompts,)."""
    values = np.array([one[name] for one in seeds], dtype=np.float64)
    if values.ndim == 2:
        return values.sum(axis=0), np.full(values.shape[1], float(len(values)))
    return values[..., column].sum(axis=0), values[..., 2].sum(axis=0)


_FIGURES: tuple[tuple[str, str, int, float, int], ...] = (  # heading, name, column, factor, digits
    ("held-out KL", "teacher_text", 0, 1, 2),
    ("KL, own text", "own_text", 0, 1, 2),
    ("reverse KL, own text", "own_text", 1, 1, 2),
    ("repeat themselves, %", "repeats", 0, 100, 1),
    ("reach the limit, %", "cut", 0, 100, 1),
    ("ROUGE-L, %", "rouge", 0, 100, 1),
)


def _table(ways: Mapping[str, Sequence[Mapping[str, Any]]], trained: Mapping[str, Sequence[Trained]]) -> str:
    rows = []
    for way, seeds in ways.items():
        cells = []
        for _, name, column, factor, digits in _FIGURES:
            sums, counts = _figure(seeds, name, column)
            found = ratio_of_sums(sums.tolist(), counts.tolist())
            low, value, high = (f"{factor * one:.{digits}f}" for one in (found.low, found.mean, found.high))
            cells.append(f"{value} [{low}, {high}]")
        own = trained.get(way, ())
        spent = f"{np.mean([one.seconds for one in own]):.0f}" if own else "–"
        memory = f"{max(one.gigabytes for one in own):.1f}" if own else "–"
        rows.append([way, spent, memory, *cells])
    return table(["student", "seconds", "peak GB", *(one[0] for one in _FIGURES)], rows)


def _ratios(ways: Mapping[str, Sequence[Mapping[str, Any]]], trained: Mapping[str, Sequence[Trained]]) -> str:
    """Return the ratios that are wanted, with intervals over prompts."""
    rows = []
    for heading, name, column, wanted in (
        ("repeat themselves", "repeats", 0, "at most 0.5"),
        ("reverse KL, own text", "own_text", 1, "at most 0.7"),
        ("ROUGE-L", "rouge", 0, "not below 1"),
    ):
        before, of_before = _figure(ways[START], name, column)
        cells = []
        for way in (ROUNDS, HALF, EPOCHS, TRL, STORED):
            after, of_after = _figure(ways[way], name, column)
            cells.append(_ratio(after, of_after, before, of_before))
        rows.append([heading, wanted, *cells])
    seconds = [one.seconds / other.seconds for one, other in zip(trained[ROUNDS], trained[TRL], strict=True)]
    rows.append(["time, of TRL's", "at most 0.7", f"{np.mean(seconds):.2f}", *["–"] * 4])
    return table(["ratio", "wanted", ROUNDS, HALF, EPOCHS, TRL, STORED], rows)


def _ratio(after: np.ndarray, of_after: np.ndarray, before: np.ndarray, of_before: np.ndarray) -> str:
    """Return a ratio of two means over the same prompts, with its 95 % interval."""
    drawn = np.random.default_rng(0).integers(0, len(after), size=(2000, len(after)))
    drawn = np.concatenate([[np.arange(len(after))], drawn])
    sums = [values[drawn].sum(axis=1) for values in (after, of_after, before, of_before)]
    if not sums[2][0]:
        return "–"
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (sums[0] / sums[1]) / (sums[2] / sums[3])
    low, high = np.nanquantile(ratios[1:], [0.025, 0.975])
    return f"{ratios[0]:.2f} [{low:.2f}, {high:.2f}]"


def _answers(ways: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    columns = {way: ways[way][0]["texts"] for way in (START, ROUNDS, EPOCHS, TEACHER)}
    rows = [[_cell(text) for text in texts] for texts in zip(*(each[:SHOWN] for each in columns.values()), strict=True)]
    lines = [f"| {' | '.join(columns)} |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])


def _cell(text: str) -> str:
    short = " ".join(text.split())
    return (short if len(short) <= 160 else f"{short[:157]}...").replace("|", "\\|")


def _about(plan: Plan) -> str:
    return (
        "WordNet's dictionary, with a fine-tuned teacher and a student of 8 of its 30 layers, which has learnt one epoch "
        f"of the teacher's answers (`before`). Then {plan.rounds} rounds of {plan.prompts} answers, reverse KL; `half and "
        f"half`: as many rounds of {plan.prompts_of_both} answers and as many of the teacher's rows; `more epochs`: its "
        "rows with the recipe's loss, in the seconds of the rounds; TRL's `GKDTrainer` with `lmbda=1, beta=1` on as many "
        "answers as the rounds; `stored rounds`: one epoch of the rounds' rollouts and scores with as many of the "
        f"teacher's rows, and no request. Batches of {BATCH}, learning rate {LEARNING_RATE:g}, answers of at most "
        f"{MAX_TOKENS} tokens. KLs are over the whole vocabulary, in nats a token; own text is sampled at temperature 1; "
        f"repetition, the limit of {4 * MAX_TOKENS} tokens and ROUGE-L to the dictionary are of greedy answers. "
        f"{plan.held_out} held-out prompts, {len(plan.seeds)} seeds, 95 % intervals."
    )
