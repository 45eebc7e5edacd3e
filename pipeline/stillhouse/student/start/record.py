"""start.json in a student's folder: the parts of the teacher that it was made of, and the scores behind that choice."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stillhouse.storage.durable import write_atomically

FILE = "start.json"
Method = Literal["leave-one-out", "greedy", "block-influence"]


class StackStart(BaseModel):
    """Which layers of one stack were kept, and why."""

    model_config = ConfigDict(frozen=True)

    stack: str  # "encoder" or "decoder"; "model" for a causal model's only stack
    depth: int  # layers of the teacher
    kept: tuple[int, ...]  # counted from 0
    method: Method | None = None  # None: evenly spaced, or listed by the recipe
    scores: tuple[float, ...] = ()  # one per layer of the teacher: nats per token, or block influence (0 to 2)


class Start(BaseModel):
    """The parts of the teacher that a student was made of."""

    model_config = ConfigDict(frozen=True)

    teacher: str
    dataset: str | None = None  # name/v001: the dataset whose rows were used
    rows: int = 0  # number of rows on which importance was measured
    stacks: tuple[StackStart, ...] = ()
    widths: dict[str, tuple[int, int]] = {}  # name -> (kept, the teacher's)
    vocabulary: tuple[int, int] | None = None  # (tokens kept, the teacher's tokens); None: all

    def write(self, folder: Path) -> None:
        """Write the record to a student's folder."""
        write_atomically(folder / FILE, self.model_dump_json(indent=2).encode() + b"\n")


def read_start(folder: Path) -> Start | None:
    """Read the record of the student in `folder`; None if it has none."""
    try:
        return Start.model_validate_json((folder / FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
