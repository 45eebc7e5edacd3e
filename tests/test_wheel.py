"""The wheel, in an environment without the clone and in a folder far from it, can do what the clone can."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stillhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that holds the wheel; the libraries are shared, the clone is not there."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin/python"
    wheel = next(folder.glob("*.whl"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    # A line of a .pth file adds a folder, but not that folder's own .pth files: so not the clone's editable install.
    here = next((environment / "lib").glob("python*/site-packages"))
    (here / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin/stillhouse"


def without_the_clone(home: Path) -> dict[str, str]:
    """An environment that names no copy of the repository."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "PREFECT_HOME": str(home / "prefect")}


def test_the_quickstart_comes_along(stillhouse: Path, tmp_path: Path) -> None:
    """Its recipe, template and prompts; the scripted teacher takes the place of the one that must be fetched."""
    scripted = ["--set", "teacher={kind: scripted}", "--set", "quality=[]", "--set", "student=null"]
    command = [str(stillhouse), "label", "flows/recipes/quickstart.yaml", *scripted, "--no-flow", "--json"]
    around = without_the_clone(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=around, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sent"] == 576
    assert (tmp_path / "data/labels/quickstart/v001/manifest.json").is_file()


def test_what_runs_is_the_wheel(stillhouse: Path, tmp_path: Path) -> None:
    probe = "import stillhouse, stillhouse_flows.run; print(stillhouse.__file__, stillhouse_flows.run.__file__)"
    python = stillhouse.parent / "python"
    quiet = without_the_clone(tmp_path)
    done = subprocess.run([python, "-c", probe], cwd=tmp_path, env=quiet, capture_output=True, text=True, check=True)
    assert str(ROOT) not in done.stdout
    assert done.stdout.count(str(stillhouse.parent.parent)) == 2


def test_what_is_scheduled_comes_along(stillhouse: Path, tmp_path: Path) -> None:
    probe = "from stillhouse_flows.definitions import *; "
    probe += "print([one['name'] for one in read_definitions(Changes()).deployments])"
    python = stillhouse.parent / "python"
    quiet = without_the_clone(tmp_path)
    done = subprocess.run([python, "-c", probe], cwd=tmp_path, env=quiet, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['nightly', 'weekly', 'on-demand', 'part']"
