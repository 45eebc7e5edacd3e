"""The experiment with packages and sections: its data, its runs, and its table, apart from any training."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sections, sections_data, sections_table
from stillhouse.recipe.load import load_recipe


def stanza(name: str, section: str, description: str, field: str = "Description") -> str:
    return f"Package: {name}\nSection: {section}\n{field}: {description}\n More about it.\n"


def test_packages_are_taken_once_without_sections_that_a_name_gives_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections_data, "LEAST", 2)
    index = "\n".join(
        [
            stanza("a", "net", "tools for the net"),
            stanza("b", "net", "a server", "Description-en"),
            stanza("c", "net", "a server"),  # as another
            stanza("d", "games", "the only game"),  # too few
            stanza("libe", "libs", "a library"),
            stanza("f", "contrib/net", "not of main"),
            "Package: g\nSection: net\n",
        ]
    )
    rows = sections_data.packages(index)
    assert {row["name"] for row in rows} == {"a", "b"}
    assert {"name": "a", "description": "tools for the net", "reference": "net"} in rows
    assert sections_data.packages(index) == rows


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(sections.ROOT)


@pytest.mark.parametrize("size", [sections.WHOLE, sections.QUICK])
@pytest.mark.parametrize("references", list(sections.TEACHER_STEPS))
def test_every_run_is_a_recipe(size: sections.Size, references: int, packages: None) -> None:
    common = sections.shared(size, references)
    runs = list(sections.runs(size, references))
    recipes = {one.name: load_recipe(sections.RECIPE, [*common, *one.settings]) for one in runs}
    assert len(recipes) == len(runs)
    for one in runs:
        recipe = recipes[one.name]
        assert recipe.references is not None and recipe.references.limit == references
        if one.kind == "ensemble":
            assert recipe.teacher.kind == "ensemble" and len(recipe.teacher.options["teachers"]) == 3
        else:
            assert recipe.teacher.finetune is not None
            assert recipe.teacher.finetune.name == f"{size.prefix}-{references}"
    kinds = {one.kind for one in runs}
    assert ("ensemble" in kinds) == (references == sections.ALL_WAYS)
    assert {one.name.split("-")[-1] for one in runs if one.kind == "quarter"} == {str(seed) for seed in size.seeds}


@pytest.mark.parametrize("size", [sections.WHOLE, sections.QUICK])
def test_a_teacher_along_has_the_steps_of_the_others_students(size: sections.Size, packages: None) -> None:
    name, settings = sections.along(size, 300, 2)
    recipe = load_recipe(sections.RECIPE, settings)
    plain = load_recipe(sections.RECIPE, sections.shared(size, 300))
    assert recipe.learns_along
    assert recipe.teacher.finetune is not None and recipe.student is not None and plain.student is not None
    assert recipe.name == recipe.teacher.finetune.name == name
    assert recipe.student.train == plain.student.train
    assert recipe.references == plain.references


def figures(references: int) -> dict[str, Any]:
    def model(*right: str, parameters: int | None = 100) -> dict[str, Any]:
        return {"parameters": parameters, "right": list(right)}

    return {
        "measured": "*Measured.*",
        "data": "0" * 64,
        "minutes": {"finetune": 2.0, "label": 4.0, "quarter": 10.0},
        "speeds": {"teacher": 5.0, "white-box": 20.0},
        "models": {
            "teacher": model("1110", parameters=400),
            "gold": model("1000", "1100"),
            "white-box": model("1110", "1100"),
            "TF-IDF on the references": model("1000", parameters=None),
        },
    }


def test_the_table_has_every_model_and_the_gain_over_gold(tmp_path: Path) -> None:
    given = {str(count): figures(count) for count in (300, 1000)}
    text = sections_table.section(json.loads(json.dumps(given)))
    assert "| white-box | 62.5" in text
    assert "| gold | 37.5" in text
    assert "300 references, white-box: 25.0" in text
    assert "83.3 % of the teacher's right answers" in text
    assert "white-box 25%" in text
    # labelling 4 min and one student 5 min on two cores are 0.3 core-hours; an answer saves 0.15 core-seconds
    assert re.search(r"\| 300 \| .* \| 7,200 \|", text)
    sections_table.plot(given, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
