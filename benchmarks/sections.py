"""Few references and many prompts, on real text: `make reproduce-sections`.

    python -m benchmarks.sections                # 100, 300, 1,000 and 3,000 references, into docs/
    python -m benchmarks.sections 300            # one of them; its figures replace those in docs/sections.json
    python -m benchmarks.sections --quick 300    # one seed and short trainings; nothing in docs/ is changed

For each number of references a teacher is fine-tuned on them, labels all prompts, and students learn. Stillhouse's
commands do all the work and are printed as they run; an interrupted run resumes where it stopped. What each model got right
is kept in docs/sections.json, prompt by prompt, so that the numbers can be run on different days. sections_table.py makes
the table.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.commands import Commands
from benchmarks.sections_data import FOLDER, RECIPE, prepare
from benchmarks.shared import DOCS, PYTHON, ROOT, in_turn, measured_on, run, versions_of, write_section

FIGURES = ROOT / "docs/sections.json"
PLOT = ROOT / "docs/sections.png"
DEMO = "data/models/smollm2-135m-instruct"
# Optimizer steps of 16 references each: about ten, six, four and three passes.
TEACHER_STEPS = {100: 60, 300: 110, 1000: 260, 3000: 560}
ALL_WAYS = 300  # the number of references at which all ways are run, and not only gold and white-box
SEEDS_OF_TEACHERS = (1, 2, 3)  # of the ensemble
REPORTS = Path("data/reports")


@dataclass(frozen=True)
class Size:
    """The size of the experiment."""

    seeds: tuple[int, ...]
    settings: tuple[str, ...] = ()  # of every command
    teacher_steps: int | None = None
    prefix: str = "sections"  # of the names of teachers, datasets and recipes


WHOLE = Size((1, 2, 3))
QUICK = Size((1,), ("prompts.limit=600", "student.train.max_steps=10"), teacher_steps=5, prefix="sections-quick")


@dataclass(frozen=True)
class Run:
    """One recipe: its students with one seed, and their report."""

    name: str
    rows: Mapping[str, str]  # row of the table -> role in the report
    settings: tuple[str, ...]
    kind: str


def shared(size: Size, references: int) -> list[str]:
    """Return the settings of every command for a number of references."""
    name = f"{size.prefix}-{references}"
    return [
        *size.settings,
        f"references.limit={references}",
        f"teacher.finetune.name={name}",
        f"teacher.finetune.train.max_steps={size.teacher_steps or TEACHER_STEPS[references]}",
        f"dataset.name={name}",
    ]


def ensemble(size: Size, references: int) -> list[str]:
    """Return the settings of the dataset that three teachers of three seeds label together."""
    name = f"{size.prefix}-{references}"
    folders = [f"data/teachers/{_teacher(size, references, seed)}/gold" for seed in SEEDS_OF_TEACHERS]
    options = json.dumps({"teachers": folders, "batch_size": 64})
    return [
        "teacher.kind=ensemble",
        f"teacher.model={folders[0]}",
        "teacher.finetune=null",
        f"teacher.options={options}",
        f"dataset.name={name}-ensemble",
    ]


def along(size: Size, references: int, seed: int) -> tuple[str, list[str]]:
    """Return the name and the settings of a student whose teacher learns along, both from the references alone."""
    name = f"{size.prefix}-{references}-{seed}-along"
    return name, [
        *shared(size, references),
        f"name={name}",
        f"seed={seed}",
        f"teacher.finetune.name={name}",
        "teacher.finetune.train={learning_rate: 1.0e-4}",
        "teacher.finetune.along=true",
        "student.labels=live",
        "student.loss.cross_entropy_weight=1.0",
        "student.init={from: teacher, layers: 8, choose: even}",  # there are no labels to measure importance on
    ]


def _teacher(size: Size, references: int, seed: int) -> str:
    return f"{size.prefix}-{references}" + ("" if seed == 1 else f"-{seed}")


def runs(size: Size, references: int) -> Iterator[Run]:
    """Yield the runs with a number of references, every seed in turn."""
    alone = ("evaluate.baselines=[]",)
    for seed in size.seeds:
        base = f"{size.prefix}-{references}-{seed}"
        plain = f"data/students/{base}/white-box"
        rounds = json.dumps({"start": "untrained", "rounds": 2, "prompts": 512, "sampling": {"max_tokens": 6}})
        kinds: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
            "quarter": ({"gold": "gold student", "white-box": "white-box student", "teacher": "teacher"}, ()),
            "whole": (
                {"gold, whole vocabulary": "gold student", "white-box, whole vocabulary": "white-box student"},
                ("student.init.vocabulary=all",),
            ),
        }
        if references == ALL_WAYS:
            kinds |= {
                "text": ({"black-box": "black-box student"}, ("student.mode=black-box", *alone)),
                "rounds": (
                    {"white-box, then two on-policy rounds": "on-policy student"},
                    (f"student.init={{model: {plain}}}", f"on_policy={rounds}", *alone),
                ),
                "ensemble": ({"white-box, three teachers": "white-box student"}, (*ensemble(size, references), *alone)),
            }
        elif references not in (300, 1000):
            del kinds["whole"]
        for kind, (rows, settings) in kinds.items():
            name = base if kind == "quarter" else f"{base}-{kind}"
            yield Run(name, rows, (f"name={name}", f"seed={seed}", *settings), kind)


def main() -> None:
    parser = argparse.ArgumentParser(description="Few references and many prompts: packages and their sections.")
    parser.add_argument("references", nargs="*", type=int, help="all, if none is given")
    parser.add_argument("--quick", action="store_true", help="one seed, short trainings; nothing in docs/ is changed")
    given = parser.parse_args()
    os.chdir(ROOT)
    if unknown := set(given.references) - set(TEACHER_STEPS):
        parser.error(f"{sorted(unknown)}: choose from {', '.join(map(str, TEACHER_STEPS))}")
    size = QUICK if given.quick else WHOLE
    digest = prepare()
    figures = json.loads(FIGURES.read_text("utf-8")) if FIGURES.is_file() and not given.quick else {}
    for references in given.references or TEACHER_STEPS:
        figures[str(references)] = measure(size, references, digest)
        if not given.quick:
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

    from benchmarks import sections_table  # lazy import: this process should stay small

    text = sections_table.section(figures)
    if given.quick:
        print(f"\n{text}\n")
        return
    sections_table.plot(figures, PLOT)
    write_section("sections", text, DOCS)


def measure(size: Size, references: int, digest: str) -> dict[str, Any]:
    """Run everything with a number of references; return what each model got right, and what it took."""
    commands = Commands(RECIPE, FOLDER / "logs")
    common = shared(size, references)
    name = f"{size.prefix}-{references}"
    minutes = {
        "finetune": commands.run("finetune", common, log=name),
        "label": commands.run("label", common, log=name),
    }
    if references == ALL_WAYS:
        for seed in SEEDS_OF_TEACHERS[1:]:
            other = _teacher(size, references, seed)
            own = [*common, f"teacher.finetune.name={other}", f"teacher.finetune.seed={seed}"]
            commands.run("finetune", own, log=other)
        commands.run("label", [*common, *ensemble(size, references)], log=f"{name}-ensemble")
    planned = list(runs(size, references))
    for one in planned:
        took = commands.run("distill", [*common, *one.settings], log=one.name)
        minutes[one.kind] = minutes.get(one.kind, 0.0) + took / len(size.seeds)
        commands.run("evaluate", [*common, *one.settings], log=one.name)
    folders = _folders(planned)
    if references == ALL_WAYS:
        folders |= _train_along(size, references, commands)
    return {
        "measured": measured_on(versions_of("torch", "transformers", "scikit-learn")),
        "data": digest,
        "minutes": minutes,
        "models": _right(size, folders) | _bag_of_words(size, references),
        "speeds": _speeds(size, folders),
    }


def _train_along(size: Size, references: int, commands: Commands) -> dict[str, list[dict[str, Any]]]:
    """Train teachers along with students; return both, one for each seed."""
    made: dict[str, list[dict[str, Any]]] = {"teacher that learns along": [], "white-box, the teacher learns along": []}
    for seed in size.seeds:
        name, settings = along(size, references, seed)
        commands.run("finetune", settings, log=name)
        folders = f"data/teachers/{name}/gold", f"data/students/{name}/white-box"
        for models, folder in zip(made.values(), folders, strict=True):
            card = json.loads(Path(folder, "student.json").read_text("utf-8"))
            models.append({"model": folder, "parameters": card["parameters"]})
    return made


def _folders(planned: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Return the models of each row of the table, as their reports have them, one for each seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in planned:
        report = json.loads((REPORTS / one.name / "report.json").read_text("utf-8"))
        for row, role in one.rows.items():
            model = next(model for model in report["models"] if model["role"] == role)
            if row != "teacher" or row not in found:
                found.setdefault(row, []).append(model)
    return found


def _right(size: Size, models: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return parameters, and whether each held-out prompt is right, of each row and seed."""
    folders = [DEMO, *(model["model"] for row in models.values() for model in row)]
    said = iter(_answers(size, ["--cores", str(os.cpu_count()), *folders]))
    told: dict[str, Any] = {"teacher, not fine-tuned": {"parameters": None, "right": [_bits(next(said))]}}
    for row, of_row in models.items():
        told[row] = {"parameters": of_row[0]["parameters"], "right": [_bits(next(said)) for _ in of_row]}
    return told


def _speeds(size: Size, models: Mapping[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Return answers per second of the teacher and of one student of each shape, on one core."""
    rows = [row for row in ("teacher", "white-box", "white-box, whole vocabulary") if row in models]
    folders = [models[row][0]["model"] for row in in_turn(rows, 0)]
    rates = _answers(size, ["--rounds", "3", "--limit", "192", *folders])
    return {row: sorted(each)[len(each) // 2] for row, each in zip(rows, rates, strict=True)}


def _answers(size: Size, arguments: Sequence[str]) -> list[Any]:
    command = [PYTHON, "-m", "benchmarks.answers", RECIPE, *arguments, *_prompts(size)]
    return list(run(command, FOLDER / "logs/answers.log").last_json["models"])


def _prompts(size: Size) -> list[str]:
    return [part for one in size.settings if one.startswith("prompts.") for part in ("--set", one)]


def _bag_of_words(size: Size, references: int) -> dict[str, Any]:
    """Return what TF-IDF with logistic regression gets right, from the references and from the teacher's answers."""
    dataset = f"data/labels/{size.prefix}-{references}"
    command = [PYTHON, "-m", "benchmarks.sections_baseline", RECIPE, dataset, str(references), *_prompts(size)]
    told = run(command, FOLDER / "logs/baseline.log").last_json
    return {
        f"TF-IDF on the {name}": {"parameters": None, "right": [_bits(one["right"])], "seconds": one["seconds"]}
        for name, one in told.items()
    }


def _bits(right: Sequence[bool]) -> str:
    return "".join("1" if one else "0" for one in right)


if __name__ == "__main__":
    main()
