"""A package that is not ours adds a teacher, a filter and a metric: it is built, installed beside the others, and used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import stillhouse.quality
import stillhouse.teachers
from stillhouse.errors import RecipeError
from stillhouse.evaluation.measures.scoring import score
from stillhouse.evaluation.metrics.base import open_metrics
from stillhouse.plugins import load_kind
from stillhouse.recipe.evaluate import MetricSettings
from tests.paths import PYTHONPATH
from tests.quality.completions import completion, filters

PACKAGE = Path(__file__).parent / "outside_package"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package, as `pip install` leaves it."""
    folder = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(folder), str(PACKAGE)], check=True, capture_output=True, text=True)
    return folder


def test_without_the_package_its_kinds_are_not_there() -> None:
    with pytest.raises(RecipeError, match="'no-shouting': there is no such kind"):
        filters({"kind": "no-shouting"})


def test_its_kinds_are_found(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    monkeypatch.delitem(sys.modules, "stillhouse_parrot", raising=False)
    open_teacher = load_kind("teacher.kind", "parrot", stillhouse.teachers, "open_teacher", group="stillhouse.teachers")
    assert open_teacher.__module__ == "stillhouse_parrot"
    (shouting,) = filters({"kind": "no-shouting"})
    assert shouting.check(completion("Land ahoy")) is None
    assert shouting.check(completion("LAND ahoy!")) is None
    assert shouting.check(completion("LAND AHOY")) == "100% of its letters are capitals, more than at_most=0.5"
    with pytest.raises(RecipeError, match=r"quality\.no-shouting\.at_least: there is no such setting"):
        filters({"kind": "no-shouting", "at_least": 1})
    with pytest.raises(RecipeError, match="Did you mean 'parrot'"):
        load_kind("teacher.kind", "parot", stillhouse.teachers, "open_teacher", group="stillhouse.teachers")


def test_its_metric_is_found_and_scores(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"kind": "loudness", "of": "characters"}
    with pytest.raises(RecipeError, match="'loudness': there is no such kind"):
        open_metrics([MetricSettings.model_validate(given)])
    monkeypatch.syspath_prepend(installed)
    monkeypatch.delitem(sys.modules, "stillhouse_parrot", raising=False)
    metrics = open_metrics([MetricSettings.model_validate(given), MetricSettings(kind="chrf")])
    references = ["Land Ahoy!", "Who goes there?"]
    found = score(metrics, [["LAND Ahoy!", "who goes there?"], references], references, student=1, teacher=0)
    assert found.models[0]["loudness off by"].mean == 4 / 25
    assert found.differences[0]["loudness off by"].mean == -4 / 25
    assert (found.columns[0].lower_is_better, found.columns[0].percent, found.columns[0].digits) == (True, True, 0)
    with pytest.raises(
        RecipeError, match=r"evaluate\.metrics\.loudness\.off: there is no such setting\. Did you mean 'of'"
    ):
        open_metrics([MetricSettings.model_validate({"kind": "loudness", "off": "letters"})])
    with pytest.raises(RecipeError, match="Did you mean 'loudness'"):
        open_metrics([MetricSettings(kind="loudnes")])
    monkeypatch.delattr("stillhouse_parrot.Loudness.digits")
    with pytest.raises(RecipeError, match=r"metrics\.0\.kind is 'loudness': its metric has no digits"):
        open_metrics([MetricSettings.model_validate(given)])


def test_a_recipe_runs_with_both(installed: Path, tmp_path: Path) -> None:
    said = ["Land ahoy", "LAND AHOY", "Who goes there?", "Pieces of eight"]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in said))
    recipe = {
        "name": "ship",
        "prompts": {"source": "said.jsonl", "holdout": 0},
        "teacher": {"kind": "parrot", "model": "polly", "options": {"sleepy": 1}},
        "label": {"max_rejected": 1.0},
        "quality": [{"kind": "no-shouting", "at_most": 0.6}],
        "dataset": {"root": "labels", "name": "ship"},
    }
    (tmp_path / "ship.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "stillhouse", "label", "ship.yaml", "--no-flow", "--json"]
    around = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{PYTHONPATH}"}
    done = subprocess.run(command, cwd=tmp_path, env=around, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sent"] == 4
    version = tmp_path / "labels/ship/v001"
    kept = [
        turns[0]["content"]
        for file in sorted((version / "data").glob("*.parquet"))
        for turns in pq.read_table(file)["completion"].to_pylist()
    ]
    assert sorted(kept) == ["Land ahoy", "Pieces of eight"]
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["rejected"] == {"a-question": 1, "no-shouting": 1}
    assert (manifest["teacher"]["kind"], manifest["teacher"]["model"]) == ("parrot", "polly")
