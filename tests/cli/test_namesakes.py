"""In a user's folder with files called `pipeline.py`, `flows.py`, `datasets.py` and `torch.py`, our code runs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.recipe.recipe import Recipe, recipe_from
from tests.conftest import MakeRecipe
from tests.namesakes import add_namesakes, refuse_imported_namesakes
from tests.paths import PYTHONPATH

pytestmark = pytest.mark.slow

BY_MODULE = [sys.executable, "-m", "stillhouse"]
BY_SCRIPT = [
    sys.executable,
    "-P",
    "-c",
    "from stillhouse.cli.main import main; main()",
]  # as the installed command does


@pytest.fixture
def recipe(tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path) -> Path:
    """A student that two processes of `accelerate launch` train, and a quantised copy of it."""
    raw: dict[str, Any] = tiny_recipe().model_dump(mode="json", by_alias=True)
    raw["student"] |= {"launch": {"num_processes": 2}}
    raw["evaluate"] |= {"baselines": []}
    add_namesakes(tmp_path)
    return recipe_file(recipe_from(raw, "test"))


def said(folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    refuse_imported_namesakes(folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_command_imports_a_users_file(recipe: Path, tmp_path: Path) -> None:
    """Each is a process of its own; `distill` starts the launcher, `evaluate` the processes that measure."""
    file = str(recipe)
    assert json.loads(said(tmp_path, *BY_MODULE, "label", file, "--no-flow", "--json"))["sent"] == 12
    (student,) = json.loads(said(tmp_path, *BY_SCRIPT, "distill", file, "--no-flow", "--json"))["students"]
    assert student["trained"]
    report = json.loads(said(tmp_path, *BY_MODULE, "evaluate", file, "--no-flow", "--json"))
    assert report["models"]
    labels = str(tmp_path / "labels")
    listed, checked = ["datasets", "list", "--root", labels], ["datasets", "verify", f"{labels}/words"]
    for words in (["plan", file], listed, checked, ["run", file, "--no-flow"]):
        assert said(tmp_path, *BY_MODULE, *words)


def test_the_flows_import_no_users_file(recipe: Path, tmp_path: Path) -> None:
    home = str(tmp_path / "prefect")
    command = ["env", f"PREFECT_HOME={home}", *BY_MODULE, "label", str(recipe), "--flow", "--json"]
    assert json.loads(said(tmp_path, *command))["sent"] == 12
