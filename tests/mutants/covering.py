"""Which tests run a line, by coverage's contexts: a mutant is asked of these alone.

The tests without a mutant are run once under coverage, and each line keeps the names of the tests that ran it. A line that
runs when a module is imported, or in a process that a test starts, has no test's name: then every test of the room is asked
after those that are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from coverage import CoverageData

CONFIG = """
[run]
parallel = true
patch = subprocess
sigterm = true
source = {source}
"""
_MOST = 400  # tests of one line; of more, whole files are asked


def options(folder: Path, sources: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Return pytest's options and the environment of a run that is measured into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "coveragerc"
    config.write_text(CONFIG.format(source=",".join(str(Path(one)) for one in sources)))
    environment = {"COVERAGE_FILE": str(folder / "measured")}
    return ["--cov", f"--cov-config={config}", "--cov-context=test", "--cov-report="], environment


class Covering:
    """What a measured run covered."""

    def __init__(self, folder: Path, copy: Path) -> None:
        self._copy = copy
        self._data = CoverageData(basename=str(folder / "measured"))
        for file in sorted(folder.glob("measured*")):
            part = CoverageData(basename=str(file))
            part.read()
            if file != Path(self._data.data_filename()):
                self._data.update(part)
        self._data.read()

    def tests(self, module: str, lines: range, files: Sequence[str]) -> Iterator[list[str]]:
        """Yield the tests that run some of these lines of a module, in the order of their files; then files, if need be."""
        contexts = self._data.contexts_by_lineno(str(self._copy / module))
        names = {name.rpartition("|")[0] for line in lines for name in contexts.get(line, [])}
        order = {file: place for place, file in enumerate(files)}
        known = [name for name in names if name.partition("::")[0] in order]
        if known and len(known) <= _MOST:
            yield sorted(known, key=lambda name: (order[name.partition("::")[0]], name))
        if "" in names or len(known) > _MOST:
            yield list(files)
