"""start.json in a student's folder: which parts of the teacher it was made of, and what that choice rests on."""

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

    stack: str  # "encoder" or "decoder"; "model" for the one of a causal model
    depth: int  # layers of the teacher
    kept: tuple[int, ...]  # counted from 0
    method: Method | None = None  # None: evenly spaced, or listed by the recipe
    scores: tuple[float, ...] = ()  # one a layer of the teacher: nats a token, or block influence (0 to 2)


class Start(BaseModel):
    """What a student was made of."""

    model_config = ConfigDict(frozen=True)

    teacher: str
    dataset: str | None = None  # name/v001: the dataset whose rows were used
    rows: int = 0  # on which importance was measured
    stacks: tuple[StackStart, ...] = ()
    widths: dict[str, tuple[int, int]] = {}  # name -> (kept, of the teacher's)
    vocabulary: tuple[int, int] | None = None  # (tokens kept, of the teacher's); None: all

    def write(self, folder: Path) -> None:
        """Write it into a student's folder."""
        write_atomically(folder / FILE, self.model_dump_json(indent=2).encode() + b"\n")


def read_start(folder: Path) -> Start | None:
    """What the student in `folder` was made of; None where it does not say."""
    try:
        return Start.model_validate_json((folder / FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
