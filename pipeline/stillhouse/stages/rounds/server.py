"""Rollouts from a vLLM server of the student: it is started for a round, and stopped before the student learns.

The server answers as a teacher of kind `vllm` does, by the labelling engine: what it has answered is in a journal, so an
interrupted round asks only for the rest. vLLM's draws cannot be repeated; once they are written they stay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse.dataset.store import Dataset
from stillhouse.labelling.engine import label
from stillhouse.models.files import ModelFiles
from stillhouse.processes.event_loop import run_coroutine
from stillhouse.progress import Progress
from stillhouse.recipe.dataset import DatasetSettings
from stillhouse.recipe.label import LabelSettings, SoftSettings
from stillhouse.recipe.prompts import PromptSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import Prompt
from stillhouse.stages.rounds.recipes import on_policy_of
from stillhouse.storage.durable import make_folder, write_atomically
from stillhouse.student.rollouts import FILE, TOKENS, write_table
from stillhouse.student.vocabulary_map import read_vocabulary_map


def write_rollouts_with_server(
    recipe: Recipe, files: ModelFiles, prompts: Sequence[Prompt], folder: Path, progress: Progress
) -> Path:
    """Have a vLLM server of the student answer prompts, and return the file of its answers, as `write_rollouts` does.

    Raises:
        TeacherUnavailable: the server does not start, or stops answering.
    """
    file = folder / FILE
    if file.is_file():
        return file
    make_folder(folder)
    source = folder / "prompts.jsonl"
    lines = [{"messages": [turn.as_dict() for turn in one.messages], "reference": one.reference} for one in prompts]
    write_atomically(source, "".join(json.dumps(line) + "\n" for line in lines).encode())
    written = run_coroutine(label(_writing_recipe(recipe, files, source), progress)).dataset
    vocabulary_map = read_vocabulary_map(files.folder)
    rows = []
    for row in _rows(written):
        ids = row[TOKENS]
        rows.append(row | {TOKENS: ids if vocabulary_map is None else vocabulary_map.teacher_ids[ids].tolist()})
    write_table(file, rows)
    return file


def _writing_recipe(recipe: Recipe, files: ModelFiles, source: Path) -> Recipe:
    """Return the recipe with which the student answers as a teacher of kind vllm."""
    settings = on_policy_of(recipe)
    return recipe.model_copy(
        update={
            "prompts": PromptSettings(source=str(source), last_turn="continue", holdout=0),
            "references": None,
            "teacher": TeacherSettings(kind="vllm", model=str(files.folder), options=settings.writer.options),
            "label": LabelSettings(
                samples=settings.samples,
                sampling=settings.sampling,
                soft=SoftSettings(k=1),  # for the token ids
                concurrency=recipe.label.concurrency,
                patience=recipe.label.patience,
            ),
            "quality": (),
            "dataset": DatasetSettings(root=str(source.parent), name="written"),
            "student": None,
            "on_policy": None,
        }
    )


def _rows(written: Dataset) -> list[dict[str, Any]]:
    """Return the rows of the server's answers, as those of a file of rollouts."""
    columns = ["prompt", "reference", "sample", "completion_token_ids", "completion", "finish_reason"]
    table = written.to_table("train").select(columns)
    return [
        {
            "messages": row["prompt"],
            "reference": row["reference"],
            "sample": row["sample"],
            TOKENS: row["completion_token_ids"],
            "text": row["completion"][-1]["content"],
            "finish_reason": row["finish_reason"],
        }
        for row in table.to_pylist()
    ]
