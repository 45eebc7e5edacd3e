"""Make docs/report.png, the README's picture of a report: `make pictures`.

python docs/make_pictures.py                                     # of the quickstart's report
python docs/make_pictures.py report.html --output report.png     # of another report

The report is opened in headless Chromium (on the PATH, or named in CHROMIUM), and the top of the page is saved.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "data/reports/quickstart/report.html"
PICTURE = ROOT / "docs/report.png"
SIZE = (1240, 1600)  # pixels: the width of the README's picture, and how much of the page it shows
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 120


class CannotMake(Exception):
    """A picture cannot be made; the message says why and how to fix it."""


def find_chromium() -> str:
    """Return the program of Chromium or Chrome.

    Raises:
        CannotMake: CHROMIUM names no program, or none is on the PATH.
    """
    named = os.environ.get("CHROMIUM")
    found = next(filter(None, map(shutil.which, [named] if named else _NAMES)), None)
    if found is None:
        problem = f"CHROMIUM is {named!r}, which is not a program" if named else "Chromium is not installed"
        raise CannotMake(f"{problem}: install Chromium or Chrome, or name its program in CHROMIUM")
    return found


def make_picture(report: Path, picture: Path) -> None:
    """Save the top of an HTML page as a PNG.

    Raises:
        CannotMake: the page or Chromium is missing, or Chromium wrote no picture.
    """
    if not report.is_file():
        raise CannotMake(f"there is no report {report}: run `make quickstart` first, or name another report")
    program = find_chromium()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "picture.png"
        width, height = SIZE
        command = [
            *(program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"),
            *(f"--window-size={width},{height}", f"--screenshot={made}", report.resolve().as_uri()),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise CannotMake(f"{program} did not end within {_SECONDS} s") from None
        if done.returncode or not made.is_file():
            raise CannotMake(
                f"{program} wrote no picture (exit status {done.returncode}): {done.stderr.strip()[-500:]}"
            )
        shutil.copyfile(made, picture)


def main() -> None:
    """Make the picture that the arguments name."""
    parser = argparse.ArgumentParser(description="Make docs/report.png from a report.")
    parser.add_argument("report", nargs="?", type=Path, default=REPORT, help="default: the quickstart's report")
    parser.add_argument("--output", type=Path, default=PICTURE, help="default: docs/report.png")
    given = parser.parse_args()
    try:
        make_picture(given.report, given.output)
    except CannotMake as error:
        sys.exit(f"Error: {error}")
    sys.stdout.write(f"{given.output}\n")


if __name__ == "__main__":
    main()
