"""docs/notebook.ipynb runs as it is written, in a kernel of its own: inside an event loop, with the demo teacher."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import DEMO
from tests.paths import PYTHONPATH, ROOT

pytestmark = pytest.mark.slow
NOTEBOOK = ROOT / "docs/notebook.ipynb"


@pytest.mark.skipif(not DEMO.is_dir(), reason="`stillhouse teacher fetch-demo` fetches the model")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/models").mkdir(parents=True)
    (tmp_path / "data/models" / DEMO.name).symlink_to(DEMO.resolve())
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "2"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells[1].source = notebook.cells[1].source.replace(
        '"prompts.limit": 48', '"prompts.limit": 20, "evaluate.latency_prompts": 2'
    )
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = ["".join(one.get("text", "") for one in cell.get("outputs", [])) for cell in notebook.cells]
    assert "20 to send" in printed[1]
    assert "20 requests sent" in printed[3]
    assert "white-box student" in printed[7]
    assert printed[8].strip()


def test_it_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
