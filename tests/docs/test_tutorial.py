"""docs/tutorial.md, walked through as a reader would: its files are written, its commands run, from an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import DEMO
from tests.paths import PYTHONPATH, ROOT
from tests.warm import run_warm

pytestmark = pytest.mark.slow
_BLOCK = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of the page."""

    language: str
    marks: str
    body: str


def blocks() -> list[Block]:
    page = (ROOT / "docs/tutorial.md").read_text("utf-8")
    return [Block(*(found["info"] + " ").split(" ", 1), found["body"]) for found in _BLOCK.finditer(page)]


def run(folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "DO_NOT_TRACK": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.skipif(not DEMO.is_dir(), reason="`stillhouse teacher fetch-demo` fetches the model")
def test_a_reader_comes_to_a_student(tmp_path: Path) -> None:
    """All but the blocks marked `long`: the whole run, which takes minutes, and what is asked of its student."""
    (tmp_path / "data/models").mkdir(parents=True)
    (tmp_path / "data/models" / DEMO.name).symlink_to(DEMO.resolve())  # fetched already
    printed = []
    for block in blocks():
        if "long" in block.marks:
            continue
        if title := re.search(r'title="([^"]+)"', block.marks):
            (tmp_path / title[1]).write_text(block.body)
        elif block.language == "python":
            printed.append(run(tmp_path, sys.executable, "-c", block.body))
        else:
            for line in block.body.splitlines():
                _, program, *arguments = shlex.split(line)
                assert program == "stillhouse"
                done = run_warm(arguments, tmp_path)
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                printed.append(done.stdout)
    assert (tmp_path / "data/students/first-try/white-box/model.safetensors").is_file()
    assert (tmp_path / "data/reports/first-try/report.html").is_file()
    assert any("576" in text for text in printed)  # the plan


def test_the_long_blocks_are_few_and_name_what_there_is() -> None:
    left_out = [block.body for block in blocks() if "long" in block.marks]
    assert left_out[0] == "$ stillhouse run recipe.yaml\n"
    compile(left_out[1], "docs/tutorial.md", "exec")
    assert len(left_out) == 2
