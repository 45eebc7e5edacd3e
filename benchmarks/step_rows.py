"""Prepare the common inputs of the speed benchmark's trainings: the student, and the rows as token ids.

    python -m benchmarks.step_rows FOLDER LAYERS

FOLDER has the labelled datasets; the outputs are FOLDER/student and FOLDER/rows.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.train_speed import SOFT, TEACHER
from benchmarks.train_students import evenly
from stillhouse.dataset.store import open_dataset
from stillhouse.student.data.token_rows import TokenRows


def rows_of(folder: Path, vocabulary: int) -> list[dict[str, list[int]]]:
    """Return prompt and completion token ids, in the dataset's order."""
    rows = TokenRows(open_dataset(folder), "train", vocabulary, None)
    examples = [rows.example(number, row) for number, group in enumerate(rows.groups) for row in range(group.rows)]
    return [{"prompt": example.prompt.tolist(), "completion": example.completion.tolist()} for example in examples]


def main() -> None:
    folder, layers = Path(sys.argv[1]), int(sys.argv[2])
    student = evenly(AutoModelForCausalLM.from_pretrained(TEACHER, dtype="auto").float(), layers)
    student.save_pretrained(folder / "student")
    AutoTokenizer.from_pretrained(TEACHER).save_pretrained(folder / "student")
    rows, *others = [rows_of(folder / "labels" / name, student.config.vocab_size) for name in SOFT]
    assert all(other == rows for other in others), "the datasets are to have the same text"
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    print(json.dumps({"lengths": [[len(row["prompt"]), len(row["completion"])] for row in rows]}), flush=True)


if __name__ == "__main__":
    main()
