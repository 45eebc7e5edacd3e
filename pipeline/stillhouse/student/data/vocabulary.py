"""Whether teacher and student share token ids, and how labels that name ids unknown to the student are handled.

A student with a part of the teacher's tokens (`student.init.vocabulary: used`) renumbers them (student/vocabulary_map.py).
Labels that name a removed token are treated like labels that name padding.

Models with the same tokenizer may have more rows in their output layers than the tokenizer has tokens, padded to a round
number, and not all to the same one: Qwen2.5 has 151,665 tokens, and 151,936 or 152,064 rows. Stored labels may then name
ids for which the student has no row. No text contains such a token, so completions never do. Labels are treated as follows:

- top-k: the mass of such an entry is added to the last outcome, "any other token", which already has the mass of all
  unlisted tokens. Where every row of the student is listed, that outcome would contain only padding, to which the student
  cannot give any mass: it is dropped, and the listed tokens are renormalised.
- sampled: such a draw is dropped. The remaining draws are independent draws of the teacher's distribution over the shared
  tokens, so their shares are an unbiased estimate of it, and so is the gradient. Added to the last outcome they would bias
  it: that outcome is everything that was not drawn, which differs with each draw, and the student would learn to raise
  whichever tokens are missing. A position with no draw left teaches nothing (value and gradient 0).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stillhouse.dataset.encodings import PackedLabels
from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused, RecipeError
from stillhouse.models.files import ModelFiles
from stillhouse.models.find import has_local_files, init_model_files, teacher_files
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.records import EncodingName
from stillhouse.student.losses.base import PAD_TOKEN_ID
from stillhouse.student.vocabulary_map import VocabularyMap, shares_tokenizer


def labels_for_student(
    labels: PackedLabels, vocabulary: int, encoding: EncodingName, vocabulary_map: VocabularyMap | None = None
) -> PackedLabels:
    """Return the labels for a student with `vocabulary` rows; entries it has no row for become `PAD_TOKEN_ID`.

    The module's docstring says what happens to their mass.

    Args:
        labels: labels of some positions, with the teacher's token ids.
        vocabulary: rows of the student's output layer.
        encoding: the encoding of the labels.
        vocabulary_map: map to the tokens of a student with a part of the teacher's; None: both share their ids.
    """
    if vocabulary_map is not None:
        labels = replace(labels, token_ids=vocabulary_map.student_ids(labels.token_ids))
    unknown = (labels.token_ids < 0) | (labels.token_ids >= vocabulary)  # (entries,)
    entries = np.diff(labels.offsets)  # (positions,)
    full = bool(entries.max(initial=0) >= vocabulary)
    if not full and not unknown.any():
        return labels
    positions = len(entries)
    position = np.repeat(np.arange(positions), entries)  # (entries,), the position of each
    known = entries - np.bincount(position[unknown], minlength=positions)  # (positions,), entries the student knows
    tail = labels.tail_logprob.astype(np.float64)
    if encoding == "top-k":
        mass = np.bincount(position[unknown], np.exp(labels.logprobs[unknown], dtype=np.float64), minlength=positions)
        with np.errstate(divide="ignore"):
            tail = np.where(known >= vocabulary, -np.inf, np.logaddexp(tail, np.log(mass)))
    else:
        tail = np.where((known == 0) & (entries > 0), 0.0, tail)
    return replace(
        labels,
        token_ids=np.where(unknown, np.int32(PAD_TOKEN_ID), labels.token_ids),
        logprobs=np.where(unknown, np.float32(-np.inf), labels.logprobs),
        tail_logprob=tail.astype(np.float32),
    )


def check_tokenizers(recipe: Recipe, student: StudentSettings) -> None:
    """Refuse a white-box student whose tokenizer is not the teacher's, where the files of both are available.

    Raises:
        RecipeError: the tokenizers differ.
        TeacherUnavailable: a model cannot be found or has no tokenizer.
    """
    if student.mode != "white-box" or student.init.model is None or not has_local_files(recipe.teacher):
        return
    teacher = teacher_files(recipe, weights=False)
    own = init_model_files(recipe, student, weights=False)
    if not shares_tokenizer(own, teacher.tokenizer_sha256):
        raise RecipeError(
            f"its tokenizer (sha256 {own.tokenizer_sha256[:12]}…) is not that of teacher.model ({teacher.name}, sha256 "
            f"{teacher.tokenizer_sha256[:12]}…), and a white-box student learns distributions over the teacher's tokens",
            setting="student.init.model",
            value=own.name,
            fix="use a model with the teacher's tokenizer, or set student.mode to 'black-box', which learns from the text",
        )


def has_other_layout(dataset: Dataset, *, encoder_decoder: bool, raise_if_other: bool) -> bool:
    """Whether the rows' token ids are laid out for the other kind of model than the student: causal, or encoder-decoder.

    A causal teacher's prompts end where the answer begins, an encoder-decoder's end with the end token.

    Raises:
        DatasetRefused: the layout is the other kind's and `raise_if_other` is set: soft labels belong to token ids.
    """
    teacher = dataset.manifest.teacher
    if teacher.encoder_decoder == encoder_decoder:
        return False
    if raise_if_other:
        kinds = ("a causal model", "an encoder-decoder")
        raise DatasetRefused(
            f"dataset {dataset.manifest.label} was labelled by {kinds[teacher.encoder_decoder]} ({teacher.model}), and the "
            f"student is {kinds[encoder_decoder]}",
            setting="student.init",
            fix="use a model of the teacher's kind, or set student.mode to 'black-box', which learns from the text",
        )
    return True


def has_other_tokenizer(dataset: Dataset, student: ModelFiles, *, raise_if_other: bool) -> bool:
    """Whether the student's tokens differ from those of the dataset's teacher; a renumbered part of them does not count.

    Raises:
        DatasetRefused: the tokens differ and `raise_if_other` is set: the student cannot read soft labels by token id.
    """
    teacher = dataset.manifest.teacher
    if teacher.tokenizer_sha256 is None or shares_tokenizer(student, teacher.tokenizer_sha256):
        return False
    if raise_if_other:
        raise DatasetRefused(
            f"dataset {dataset.manifest.label} was labelled with the tokenizer of {teacher.model} (sha256 "
            f"{teacher.tokenizer_sha256[:12]}…), and {student.name} has another (sha256 "
            f"{student.tokenizer_sha256[:12]}…)",
            setting="student.init",
            fix="use a model with the teacher's tokenizer, or set student.mode to 'black-box', which learns from the text",
        )
    return True
