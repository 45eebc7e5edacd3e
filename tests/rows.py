"""What became of every prompt of a dataset, kept and rejected alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.dataset.store import Dataset

Row = Mapping[str, Any]


def rows_by_prompt(dataset: Dataset) -> dict[str, Row]:
    """Every prompt's row; `reason` is None where the completion was kept. A prompt with two rows is an error."""
    found: dict[str, Row] = {}
    for entry in dataset.manifest.files:
        with dataset.open(entry) as parquet:
            rows = parquet.read().to_pylist()
        for row in rows:
            prompt = row["prompt"][-1]["content"]
            assert prompt not in found, f"two rows of {prompt!r}"
            found[prompt] = {"reason": None, **row}
    return found
