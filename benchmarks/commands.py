"""Stillhouse's commands as the steps of an experiment: printed, logged, timed, and resumed where they stopped.

commands = Commands(RECIPE, folder=Path("data/phonemes/logs"), cores=1)
minutes = commands.run("finetune", ["teacher.finetune.name=phonemes"], log="phonemes")
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shared import STILLHOUSE


@dataclass(frozen=True)
class Commands:
    """Commands with one recipe."""

    recipe: str
    folder: Path  # of the logs
    cores: int | None = None  # threads of torch; None: as many as there are

    def run(self, command: str, settings: Sequence[str], *, log: str) -> float:
        """Run one command, with its output in a log, whose end is shown if the command fails.

        Returns:
            The minutes of the longest run of this command, because a resumed run finds some or all of its work done.

        Raises:
            SystemExit: the command failed.
        """
        given = [part for setting in settings for part in ("--set", setting)]
        print("$ " + shlex.join(["stillhouse", command, self.recipe, *given]), flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        file, took = self.folder / f"{log}-{command}.log", self.folder / f"{log}-{command}.minutes"
        began = time.monotonic()
        threads = {} if self.cores is None else {"OMP_NUM_THREADS": str(self.cores)}
        with file.open("w", encoding="utf-8") as output:
            ended = subprocess.run(
                [*STILLHOUSE, command, self.recipe, *given],
                env=os.environ | threads,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if ended.returncode:
            tail = "\n".join(file.read_text(encoding="utf-8").splitlines()[-20:])
            sys.exit(f"{tail}\nstillhouse {command} ended with status {ended.returncode}; its log is {file}")
        minutes = (time.monotonic() - began) / 60
        print(f"  {minutes:.1f} min", flush=True)
        longest = max(minutes, float(took.read_text()) if took.is_file() else 0.0)
        took.write_text(str(longest))
        return longest
