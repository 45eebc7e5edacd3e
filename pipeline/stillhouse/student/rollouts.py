"""Rollouts: completions that a student writes, as rows whose tokens a teacher scores.

    file = write_rollouts(student_files, prompts, on_policy, seed, folder, load=load)      # folder/rollouts.parquet

Prompts of similar length are answered in one batch, and each batch is a durable file of its own: after an interruption
only the batch in progress is written again. Every answer has its own seed, and the batches are the same in every run, so an
interrupted run writes the rollouts of an unbroken one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import TemplateRefused, TrainingError
from stillhouse.models.files import ModelFiles
from stillhouse.progress import Progress, silent
from stillhouse.recipe.on_policy import OnPolicySettings
from stillhouse.records import Prompt, content_hash
from stillhouse.storage.durable import atomic_file, make_folder
from stillhouse.student.vocabulary_map import VocabularyMap, read_vocabulary_map

if TYPE_CHECKING:
    from stillhouse.models.load import LanguageModel

FILE = "rollouts.parquet"
TOKENS = "token_ids"  # column of the tokens to score, in the teacher's numbering

_SCHEMA = pa.schema(
    [
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("reference", pa.string()),
        ("sample", pa.int32()),
        (TOKENS, pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class _ToWrite:
    """A rollout to write."""

    place: int  # among all rollouts
    prompt: Prompt
    sample: int
    ids: list[int]  # of the prompt, in the student's numbering


def write_rollouts(
    files: ModelFiles,
    prompts: Sequence[Prompt],
    settings: OnPolicySettings,
    seed: Sequence[int],
    folder: Path,
    progress: Progress = silent,
    *,
    load: Callable[[], LanguageModel],
    load_teacher: Callable[[], LanguageModel] | None = None,
) -> Path:
    """Have a student answer prompts, and return the file of its answers.

    Args:
        files: the student.
        prompts: the prompts, each answered `settings.samples` times.
        settings: how the student samples.
        seed: seeds of all answers; a prompt and the number of the sample make each one's own.
        folder: where the file is written; batches of an interrupted call are read from there.
        progress: called with the activity, the rollouts written and the total.
        load: loads the student.
        load_teacher: loads the teacher, if `settings.teacher_share` mixes it in.

    Raises:
        TrainingError: the chat template renders no prompt, or no prompt fits into the context window.
    """
    file = folder / FILE
    if file.is_file():
        return file
    make_folder(folder)
    lm = load()
    vocabulary_map = read_vocabulary_map(files.folder)
    batches = list(_batches(lm, prompts, settings))
    total = sum(map(len, batches))
    if not total:
        raise TrainingError(
            f"the student can answer none of the {len(prompts)} prompts: its chat template refuses them, or they do not "
            "fit into its context window",
            setting="on_policy.sampling.max_tokens",
            value=settings.sampling.max_tokens,
            fix="set it lower, or check the chat template",
        )
    teacher = None if load_teacher is None else load_teacher()
    done = 0
    for number, batch in enumerate(batches):
        part = folder / f"rollouts-{number:05d}.parquet"
        if not part.is_file():
            _write(part, _answers(lm, batch, settings, seed, vocabulary_map, teacher))
        done += len(batch)
        progress("Writing rollouts", done, total)
    parts = [folder / f"rollouts-{number:05d}.parquet" for number in range(len(batches))]
    joined = pa.concat_tables([pq.read_table(part) for part in parts])
    order = np.argsort([one.place for batch in batches for one in batch], kind="stable")
    _write(file, joined.take(pa.array(order)))
    for part in parts:
        part.unlink()
    return file


def _batches(lm: LanguageModel, prompts: Sequence[Prompt], settings: OnPolicySettings) -> Iterator[list[_ToWrite]]:
    """Yield the rollouts in batches of similar prompt length, longest first, without prompts that cannot be answered."""
    from stillhouse.models.load import encode_prompt

    fitting: list[_ToWrite] = []
    for prompt in prompts:
        try:
            ids = encode_prompt(lm.tokenizer, prompt.messages)
        except TemplateRefused:
            continue
        if lm.fits(len(ids), settings.sampling.max_tokens):
            for sample in range(settings.samples):
                fitting.append(_ToWrite(len(fitting), prompt, sample, ids))
    fitting.sort(key=lambda one: len(one.ids), reverse=True)
    for start in range(0, len(fitting), settings.batch_size):
        yield fitting[start : start + settings.batch_size]


def _answers(
    lm: LanguageModel,
    batch: Sequence[_ToWrite],
    settings: OnPolicySettings,
    seed: Sequence[int],
    vocabulary_map: VocabularyMap | None,
    teacher: LanguageModel | None,
) -> pa.Table:
    from stillhouse.models.generate import GenerationHooks, Sampling, generate
    from stillhouse.models.load import decode_completion
    from stillhouse.models.mixture import TeacherMixture

    sampling = settings.sampling
    prompts = [one.ids for one in batch]
    mixture = [] if teacher is None else [TeacherMixture(teacher, prompts, settings.teacher_share)]
    seeds = [int(content_hash([*seed, one.prompt.id, one.sample])[:15], 16) for one in batch]
    written = generate(
        lm,
        prompts,
        max_tokens=sampling.max_tokens,
        sampling=Sampling(sampling.temperature, sampling.top_p, seeds) if sampling.temperature > 0 else None,
        hooks=GenerationHooks(processors=mixture),
    )
    rows: list[dict[str, Any]] = []
    for one, ids in zip(batch, written, strict=True):
        teacher_ids = ids if vocabulary_map is None else vocabulary_map.teacher_ids[ids].tolist()
        rows.append(
            {
                "messages": [turn.as_dict() for turn in one.prompt.messages],
                "reference": one.prompt.reference,
                "sample": one.sample,
                TOKENS: teacher_ids,
                "text": decode_completion(lm, ids, one.prompt),
                "finish_reason": "stop" if ids[-1] in lm.end_ids else "length",
            }
        )
    return pa.Table.from_pylist(rows, _SCHEMA)


def write_table(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rollouts, durably."""
    _write(file, pa.Table.from_pylist(rows, _SCHEMA))


def _write(file: Path, table: pa.Table) -> None:
    with atomic_file(file) as stream:
        pq.write_table(table, stream)
