"""README.md: its ten lines work from an empty folder, its links lead somewhere, and its versions are the pinned ones."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEMO
from tests.paths import PYTHONPATH, ROOT

PAGE = (ROOT / "README.md").read_text("utf-8")


def ten_lines() -> list[str]:
    """Return the shell commands of "Your own data in ten lines"; a line that is indented further continues the last."""
    section = PAGE.partition("\n## Your own data in ten lines\n")[2].partition("\n## ")[0]
    return re.findall(r"^    (\S.*(?:\n      .*)*)", section.partition("```python")[0], re.MULTILINE)


def test_the_ten_lines_are_found() -> None:
    assert [line.split()[:2] for line in ten_lines()] == [
        ["python", "-c"],
        ["stillhouse", "teacher"],
        ["stillhouse", "init"],
        ["stillhouse", "plan"],
        ["stillhouse", "run"],
    ]
    python = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(python) == 1
    compile(python[0], "README.md", "exec")


@pytest.mark.slow
@pytest.mark.skipif(not DEMO.is_dir(), reason="`stillhouse teacher fetch-demo` fetches the model")
def test_they_work_from_an_empty_folder(tmp_path: Path) -> None:
    """All but the last, the run, which takes minutes; tests/docs/test_tutorial.py has one."""
    (tmp_path / "data/models").mkdir(parents=True)
    (tmp_path / "data/models" / DEMO.name).symlink_to(DEMO.resolve())  # fetched already
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "DO_NOT_TRACK": "1"}
    for line in ten_lines()[:-1]:
        command = re.sub(r"^stillhouse ", "python -m stillhouse ", line)
        command = re.sub(r"^python ", f"'{sys.executable}' ", command)
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "40 to send" in done.stdout
    assert len((tmp_path / "questions.csv").read_text().splitlines()) == 41


def test_every_link_to_a_file_leads_to_one() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGE)
    assert "docs/tutorial.md" in links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_it_names_where_the_report_is() -> None:
    assert "data/reports/quickstart/report.html" in PAGE
