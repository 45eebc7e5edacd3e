"""`make pictures`: a picture of a report, or a clear error."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    """docs/make_pictures.py, which is outside of any package."""
    spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs/make_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def report(tmp_path: Path) -> Path:
    page = tmp_path / "report.html"
    page.write_text("<h1>A report</h1>")
    return page


def program(tmp_path: Path, text: str) -> str:
    file = tmp_path / "chromium"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def test_a_missing_report_is_an_error(pictures: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(pictures.CannotMake, match=r"no report .*absent\.html: run `make quickstart` first"):
        pictures.make_picture(tmp_path / "absent.html", tmp_path / "report.png")


def test_a_missing_chromium_is_an_error(
    pictures: ModuleType, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHROMIUM", "no-such-program")
    with pytest.raises(pictures.CannotMake, match="CHROMIUM is 'no-such-program', which is not a program: install"):
        pictures.make_picture(report, tmp_path / "report.png")
    monkeypatch.delenv("CHROMIUM")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pictures.CannotMake, match="Chromium is not installed: install Chromium or Chrome, or name"):
        pictures.make_picture(report, tmp_path / "report.png")


def test_a_chromium_that_fails_leaves_the_old_picture(
    pictures: ModuleType, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "report.png"
    picture.write_bytes(b"old")
    monkeypatch.setenv("CHROMIUM", program(tmp_path, "echo no display >&2; exit 3"))
    with pytest.raises(pictures.CannotMake, match=r"wrote no picture \(exit status 3\): no display"):
        pictures.make_picture(report, picture)
    assert picture.read_bytes() == b"old"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")
def test_a_picture_has_its_size(pictures: ModuleType, report: Path, tmp_path: Path) -> None:
    pictures.make_picture(report, tmp_path / "report.png")
    header = (tmp_path / "report.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(header[16:20]), int.from_bytes(header[20:24])) == pictures.SIZE
