"""round.json: what a round was made of, and the version with its scored rollouts.

It is written when the scores are a finished version; a later run then finds the version without reading a rollout.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from stillhouse.storage.durable import write_atomically
from stillhouse.student.finished.rounds import RoundHealth

FILE = "round.json"


class RoundRecord(BaseModel):
    """A round whose rollouts are scored."""

    model_config = ConfigDict(frozen=True)

    key: str  # of the student that wrote and of how it wrote
    student_sha256: str  # content of that student
    dataset: str  # name/v001
    version: int
    health: RoundHealth

    def write(self, folder: Path) -> None:
        """Write the record into the round's folder, durably."""
        write_atomically(folder / FILE, self.model_dump_json(indent=2).encode() + b"\n")


def read_record(folder: Path, key: str) -> RoundRecord | None:
    """Return the record in a round's folder if it has this key; else None."""
    try:
        record = RoundRecord.model_validate_json((folder / FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return record if record.key == key else None
