"""The code of what does not come with Stillhouse is part of the key of what it shapes; a teacher's is told of."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.evaluation.evaluate import evaluate
from stillhouse.labelling.engine import label
from stillhouse.labelling.result import LabelResult
from stillhouse.plugins import FILTERS, LOSSES, METRICS, TEACHERS, plugin_code_key
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.stages import distill_students, recipe_dataset
from stillhouse.student.finished.folder import student_folder
from tests.conftest import MakeRecipe
from tests.paths import PYTHONPATH

OUTSIDE = {
    "keeps_some.py": """
from outside_words import unwanted
def open_filter(options):
    return lambda completion: "unwanted" if any(word in completion.text for word in unwanted()) else None
""",
    "outside_words.py": """
def unwanted():
    import outside.lists.short
    return outside.lists.short.WORDS
""",
    "outside/__init__.py": "",
    "outside/lists/__init__.py": "",
    "outside/lists/short.py": "WORDS = ['kettle']\n",
    "outside/lists/unused.py": "WORDS = []\n",
    "outside/loss.py": """
from . import factor
def divergence(teacher, student):
    from stillhouse.student.losses.forward_kl import divergence as forward
    return factor.FACTOR * forward(teacher, student)
""",
    "outside/factor.py": "FACTOR = 1.0\n",
    "outside/metric.py": """
import numpy as np
class Length:
    name, lower_is_better, percent, digits = "length", False, False, 1
    def statistics(self, answer, reference):
        return (float(len(answer)), 1.0)
    def score(self, totals):
        return totals[..., 0] / totals[..., 1]
def open_metric(options):
    return Length()
""",
    "outside/teacher.py": """
from stillhouse.teachers.prices import FREE
from stillhouse.records import TeacherIdentity
from stillhouse.teachers.base import Answer
class Echo:
    batch_size, parallel, price = 4, 1, FREE
    identity = TeacherIdentity("echo", "echo")
    async def answer(self, requests):
        return [Answer("echo " + request.prompt.text, "stop", 1, 1) for request in requests]
    async def close(self):
        pass
def open_teacher(settings, label, seed):
    return Echo()
""",
}
POINTS = """
[stillhouse.filters]
keeps-some = keeps_some:open_filter
[stillhouse.losses]
outside-kl = outside.loss:divergence
[stillhouse.metrics]
length = outside.metric:open_metric
[stillhouse.teachers]
echo = outside.teacher:open_teacher
"""


class Project:
    """Somebody's project, installed as `pip install` or `pip install -e` leaves it."""

    def __init__(self, folder: Path, *, editable: bool) -> None:
        self.folder = folder
        for name, text in OUTSIDE.items():
            self.write(name, text)
        self.information = folder / "outside-0.1.dist-info"
        self.information.mkdir()
        (self.information / "entry_points.txt").write_text(POINTS)
        files = ["outside/__init__.py"] if editable else [*OUTSIDE]
        (self.information / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        told = {"url": folder.as_uri(), "dir_info": {"editable": editable}}
        (self.information / "direct_url.json").write_text(json.dumps(told))
        self.version("0.1")

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for module in [
            one for one in sys.modules if one.partition(".")[0] in ("outside", "keeps_some", "outside_words")
        ]:
            del sys.modules[module]
        for compiled in self.folder.rglob("*.pyc"):
            compiled.unlink()  # two edits within a second look the same to Python

    def version(self, number: str) -> None:
        (self.information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: outside\nVersion: {number}\n")


@pytest.fixture(params=["installed", "editable"])
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(tmp_path / "project", editable=request.param == "editable")
    monkeypatch.syspath_prepend(made.folder)
    return made


@pytest.mark.parametrize(
    ("group", "kind"),
    [(FILTERS, "length"), (FILTERS, "regex"), (LOSSES, "forward-kl"), (METRICS, "chrf"), (TEACHERS, "scripted")],
)
def test_what_comes_with_stillhouse_adds_nothing_to_a_key(group: str, kind: str) -> None:
    assert plugin_code_key(group, kind) == {}


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ("keeps_some.py", True),
        ("outside_words.py", True),  # imported by it, beside it
        ("outside/lists/short.py", True),  # imported by that, in a function
        ("outside/__init__.py", True),  # runs when that is imported
        ("outside/lists/unused.py", False),
        ("outside/loss.py", False),
    ],
)
def test_the_hash_is_of_what_the_kind_is_made_of(project: Project, changed: str, counts: bool) -> None:
    before = plugin_code_key(FILTERS, "keeps-some")["code"]
    assert (before["distribution"], before["version"]) == ("outside", "0.1")
    project.write(changed, OUTSIDE[changed] + "# a change\n")
    assert (plugin_code_key(FILTERS, "keeps-some")["code"] != before) is counts
    project.write(changed, OUTSIDE[changed])
    assert plugin_code_key(FILTERS, "keeps-some")["code"] == before
    project.version("0.2")
    assert plugin_code_key(FILTERS, "keeps-some")["code"] == before | {"version": "0.2"}


def test_the_hash_does_not_say_where_it_is_installed(project: Project, tmp_path: Path) -> None:
    probe = f"from stillhouse.plugins import plugin_code_key; print(plugin_code_key({FILTERS!r}, 'keeps-some')['code'])"
    project.folder.rename(tmp_path / "moved")
    around = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path / 'moved'}{os.pathsep}{PYTHONPATH}",
    }
    (tmp_path / "project").mkdir()
    first = subprocess.run([sys.executable, "-c", probe], env=around, capture_output=True, text=True, check=True).stdout
    (tmp_path / "project").rmdir()
    (tmp_path / "moved").rename(tmp_path / "project")
    assert first.strip() == str(plugin_code_key(FILTERS, "keeps-some")["code"])


def labelled(recipe: Recipe) -> LabelResult:
    return asyncio.run(label(recipe))


def test_an_edited_filter_makes_a_version_and_asks_for_nothing(scripted_recipe: MakeRecipe, project: Project) -> None:
    recipe = scripted_recipe(quality=[{"kind": "keeps-some"}])
    first = labelled(recipe)
    assert (first.sent, first.dataset.manifest.rejected) == (12, {"keeps-some": 1})
    assert labelled(recipe).fresh is False
    project.write("outside/lists/short.py", "WORDS = ['otter', 'tram']\n")
    second = labelled(recipe)
    assert (second.fresh, second.sent, second.reused) == (True, 0, 12)
    assert second.dataset.manifest.rejected == {"keeps-some": 2}
    assert second.dataset.manifest.parents == (first.dataset.manifest.label,)
    assert labelled(recipe).fresh is False


def test_an_edited_filter_sorts_anew_what_a_stopped_run_had_written(
    scripted_recipe: MakeRecipe, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = scripted_recipe(quality=[{"kind": "keeps-some"}])
    with monkeypatch.context() as stopped:
        stopped.setattr("stillhouse.labelling.job.write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            labelled(recipe)
    project.write("outside/lists/short.py", "WORDS = ['otter', 'tram']\n")
    result = labelled(recipe)
    assert (result.sent, result.dataset.manifest.rejected) == (0, {"keeps-some": 2})


def test_an_edited_loss_makes_another_student(tiny_recipe: MakeRecipe, project: Project) -> None:
    made = tiny_recipe()
    loss = {"kind": "outside-kl", "temperature": 2.0}
    recipe = made.model_copy(
        update={"student": made.student.model_copy(update={"loss": type(made.student.loss)(**loss)})}  # type: ignore[union-attr]
    )
    dataset = labelled(recipe).dataset
    assert recipe.student is not None

    def key(variant: str) -> str:
        return student_folder(recipe, recipe.student, variant, dataset).key  # type: ignore[arg-type]

    white, black = key("white-box"), key("black-box")
    project.write("outside/factor.py", "FACTOR = 3.0\n")
    assert key("white-box") != white
    assert key("black-box") == black, "it learns without that loss"
    project.write("outside/factor.py", OUTSIDE["outside/factor.py"])
    assert key("white-box") == white


def test_an_edited_metric_makes_another_report(tiny_recipe: MakeRecipe, project: Project, tmp_path: Path) -> None:
    evaluation = {"answers": 2, "latency_prompts": 2, "reports": str(tmp_path / "reports"), "baselines": []}
    recipe = tiny_recipe(evaluate=evaluation | {"metrics": ["length"]})
    labelled(recipe)
    distill_students(recipe)
    assert recipe.student is not None
    assert evaluate(recipe, recipe.student, recipe_dataset(recipe)).fresh
    assert not evaluate(recipe, recipe.student, recipe_dataset(recipe)).fresh
    project.write(
        "outside/metric.py", OUTSIDE["outside/metric.py"].replace("(float(len(answer))", "(2.0 * len(answer)")
    )
    assert evaluate(recipe, recipe.student, recipe_dataset(recipe)).fresh


def test_an_edited_teacher_is_told_of_and_asked_for_nothing_again(
    scripted_recipe: MakeRecipe, project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = scripted_recipe(teacher={"kind": "echo"}).model_copy(update={"label": LabelSettings()})
    assert labelled(recipe).sent == 12
    labelled(recipe)
    assert "code has changed" not in caplog.text
    project.write("outside/teacher.py", OUTSIDE["outside/teacher.py"].replace('"echo " +', '"ECHO " +'))
    project.version("0.2")
    result = labelled(recipe)
    assert (result.sent, result.fresh) == (0, False)
    assert "code of this plug-in has changed since it labelled words/v001 (outside 0.1, sha256 " in caplog.text
    assert ", outside 0.2, sha256 " in caplog.text.replace("… then", "")
    assert "set another dataset.name" in caplog.text
