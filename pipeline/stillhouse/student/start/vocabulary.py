"""`student.init.vocabulary: used`: keep only the embedding and head rows that the dataset needs, and cut the tokenizer.

    check_used_vocabulary(recipe, student, files)               # before anything is labelled or trained
    cut = cut_vocabulary(model, files, labelled, scratch)       # a smaller model; its tokenizer is in `scratch`
    write_model(cut.model, scratch, folder)

The new vocabulary has exactly as many rows as the tokenizer has tokens; the teacher's padding rows are dropped. The written
tokenizer is loaded again in the ordinary way, and every text of the dataset must have the same tokens as before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused, RecipeError, TrainingError
from stillhouse.models.files import ModelFiles
from stillhouse.models.find import has_local_files, teacher_files
from stillhouse.models.load import LanguageModel, decoder_start_token_id, load_tokenizer, token_ids_alone
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.storage.durable import write_atomically
from stillhouse.student.start.layers import untie_head
from stillhouse.student.start.tokenizer import (
    TokenIds,
    Tokenizer,
    cut_tokenizer,
    named_tokens,
    renumbered_settings,
    token_ids,
    tokens_to_keep,
    why_uncuttable,
)
from stillhouse.student.start.used_tokens import tokenised_texts, used_tokens
from stillhouse.student.vocabulary_map import VocabularyMap

_GENERATION = "generation_config.json"
_SETTING: Any = {"setting": "student.init.vocabulary", "value": "used"}
_FIX = "set it to 'all'"
_PROBE = 8  # tokens on which the cut model is compared with the whole one


@dataclass(frozen=True)
class CutModel:
    """A model with a part of its tokens."""

    model: PreTrainedModel
    kept: int  # tokens
    of: int  # tokens of the whole tokenizer


def check_used_vocabulary(recipe: Recipe, student: StudentSettings, files: ModelFiles) -> None:
    """Refuse `vocabulary: used` if the tokenizer cannot be cut or is not the teacher's, from files alone.

    Args:
        recipe: the recipe, which names the teacher.
        student: the student's settings.
        files: the files of the model that the student starts from.

    Raises:
        RecipeError: the tokenizer is of a kind that cannot be cut, or the start has another one than the teacher.
        TeacherUnavailable: the teacher cannot be found.
    """
    if not (files.folder / "tokenizer.json").is_file():
        raise RecipeError(
            f"{files.name} has no tokenizer.json, only a slow tokenizer",
            **_SETTING,
            fix=f"{_FIX}, or save the model with a fast tokenizer",
        )
    if "AutoTokenizer" in files.custom_code:
        raise RecipeError(f"{files.name} has a tokenizer with custom code, which cannot be cut", **_SETTING, fix=_FIX)
    if (reason := why_uncuttable(_read(files.folder / "tokenizer.json"))) is not None:
        raise RecipeError(f"the vocabulary of {files.name} cannot be cut: {reason}", **_SETTING, fix=_FIX)
    if student.init.model is None:
        return
    if not has_local_files(recipe.teacher):
        raise RecipeError(
            f"the student keeps the teacher's tokens, and the tokenizer of a teacher of kind {recipe.teacher.kind!r} "
            "is not known",
            **_SETTING,
            fix=_FIX,
        )
    teacher = teacher_files(recipe, weights=False)
    if teacher.tokenizer_sha256 != files.tokenizer_sha256:
        raise RecipeError(
            f"the student keeps the teacher's tokens, and student.init.model ({files.name}) has another tokenizer than "
            f"teacher.model ({teacher.name})",
            **_SETTING,
            fix=f"{_FIX}, or start from a model with the teacher's tokenizer",
        )


def cut_vocabulary(
    model: PreTrainedModel, source: ModelFiles, labelled: Dataset, scratch: Path, *, trust_remote_code: bool = False
) -> CutModel:
    """Return the model with only the tokens that the dataset uses.

    Its tokenizer, its generation settings and the vocabulary map are written to `scratch`, for `write_model`.

    Args:
        model: a model with the tokenizer of `source`; it is not changed.
        source: the files of the model, or of the model that it was made of.
        labelled: the dataset that determines the used tokens.
        scratch: an empty folder.
        trust_remote_code: whether the tokenizer's own code may run.

    Raises:
        DatasetRefused: the dataset's token ids are not of this tokenizer.
        TrainingError: a text of the dataset has other tokens in the cut tokenizer, or the cut model computes other logits.
    """
    _refuse_other_tokens(labelled, source)
    tokenizer = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
    tokenizer.save_pretrained(scratch)
    whole = _read(scratch / "tokenizer.json")  # as transformers runs it, which may differ from the file that it read
    rows = int(model.get_input_embeddings().weight.shape[0])
    lm = LanguageModel(model, tokenizer, decoder_start_token_id(model))
    named = {*tokenizer.all_special_ids, *lm.end_ids, *_named(model, source)}
    kept = tokens_to_keep(whole, {*used_tokens(labelled, lm, rows).tolist(), *named})
    kept = kept[kept < rows]  # Gemma's tokenizer has a token for images that its text models have no row for
    cut = _cut_model(model, kept)
    _write_scratch(scratch, source, whole, kept)
    cut.config.save_pretrained(scratch)  # transformers reads the tokenizer's class from it
    load_tokenizer(scratch, trust_remote_code=trust_remote_code).save_pretrained(scratch)  # as the student's will be
    vocabulary_map = VocabularyMap(kept, source.tokenizer_sha256, ModelFiles("", scratch).tokenizer_sha256)
    vocabulary_map.write(scratch)
    smaller = LanguageModel(
        cut, load_tokenizer(scratch, trust_remote_code=trust_remote_code), decoder_start_token_id(cut)
    )
    _refuse_other_texts(labelled, lm, smaller, vocabulary_map)
    _refuse_other_logits(model, cut, kept)
    return CutModel(cut, len(kept), len(token_ids(whole)))


def _named(model: PreTrainedModel, source: ModelFiles) -> set[int]:
    """Return the tokens that the model's settings name."""
    generation = source.folder / _GENERATION
    return named_tokens(model.config.to_dict()) | named_tokens(_read(generation) if generation.is_file() else {})


# ---------------------------------------------------------------------------------------------------------- weights


def _cut_model(model: PreTrainedModel, kept: TokenIds) -> PreTrainedModel:
    """Return the model with only the rows `kept` of every weight that has one row per token, head and biases included."""
    config = type(model.config).from_dict(_cut_settings(model.config.to_dict(), kept))
    cut = type(model)(config).to(model.dtype)
    untie_head(cut, model)
    whole, index = model.state_dict(), torch.from_numpy(kept).long()
    cut.load_state_dict({name: _rows(name, whole[name], want, index) for name, want in cut.state_dict().items()})
    ids = renumbered_settings(token_ids_alone(model.generation_config).to_dict(), kept)
    cut.generation_config = token_ids_alone(GenerationConfig(**ids))
    cut.eval()
    return cut


def _cut_settings(settings: dict[str, Any], kept: TokenIds) -> dict[str, Any]:
    cut = renumbered_settings(settings, kept)
    for section in (cut, cut.get("text_config")):
        if isinstance(section, dict) and "vocab_size" in section:
            section["vocab_size"] = len(kept)
    return cut


def _rows(name: str, whole: Tensor, want: Tensor, kept: Tensor) -> Tensor:
    """Return a weight in the shape that the smaller model needs, by cutting the dimension of the tokens."""
    for dimension, (have, wanted) in enumerate(zip(whole.shape, want.shape, strict=True)):
        if have == wanted:
            continue
        if wanted != len(kept) or have <= int(kept.max()):
            raise TrainingError(
                f"{name} of shape {tuple(whole.shape)} cannot be cut to {tuple(want.shape)}", **_SETTING, fix=_FIX
            )
        whole = whole.index_select(dimension, kept.to(whole.device))
    return whole


def _refuse_other_logits(model: PreTrainedModel, cut: PreTrainedModel, kept: TokenIds) -> None:
    """Compare both models on a few tokens, to refuse a kind of model with further weights per token."""
    indices = torch.linspace(0, len(kept) - 1, _PROBE).long()[None]  # (1, probe)
    index = torch.from_numpy(kept).long()
    with torch.inference_mode():
        logits = [
            one(input_ids=ids, **({"decoder_input_ids": ids} if one.config.is_encoder_decoder else {})).logits.float()
            for one, ids in ((model.eval(), index[indices]), (cut, indices))
        ]
    whole, own = logits[0][..., index], logits[1]
    if not torch.allclose(whole, own, rtol=0.0, atol=0.02 * float(whole.abs().max())):
        raise TrainingError(
            f"a {model.config.model_type} model with a part of its tokens computes other logits (by up to "
            f"{float((whole - own).abs().max()):.3g})",
            **_SETTING,
            fix=_FIX,
        )


# -------------------------------------------------------------------------------------------------------- tokenizer


def _write_scratch(scratch: Path, source: ModelFiles, whole: Tokenizer, kept: TokenIds) -> None:
    """Write the cut tokenizer, and the generation settings with its ids."""
    _write(scratch / "tokenizer.json", cut_tokenizer(whole, kept))
    settings = _read(scratch / "tokenizer_config.json")
    if decoder := settings.get("added_tokens_decoder"):
        new = {str(old): str(number) for number, old in enumerate(kept.tolist())}
        settings["added_tokens_decoder"] = {new[old]: token for old, token in decoder.items() if old in new}
        _write(scratch / "tokenizer_config.json", settings)
    generation = source.folder / _GENERATION
    if generation.is_file():
        _write(scratch / generation.name, renumbered_settings(_read(generation), kept))


def _refuse_other_tokens(labelled: Dataset, source: ModelFiles) -> None:
    """Refuse token ids of another tokenizer, which would keep other tokens than the texts need."""
    manifest = labelled.manifest
    theirs = manifest.teacher.tokenizer_sha256
    if theirs != source.tokenizer_sha256 and (theirs is not None or manifest.soft is not None):
        known = f"sha256 {theirs[:12]}…" if theirs else "not known"
        raise DatasetRefused(
            f"dataset {manifest.label} was labelled with another tokenizer ({known}) than that of {source.name} (sha256 "
            f"{source.tokenizer_sha256[:12]}…)",
            **_SETTING,
            fix=f"{_FIX}, or label again with this teacher",
        )


def _refuse_other_texts(
    labelled: Dataset, whole: LanguageModel, cut: LanguageModel, vocabulary_map: VocabularyMap
) -> None:
    """Refuse a cut tokenizer in which a text of the dataset has other tokens, apart from their ids."""
    both = zip(tokenised_texts(labelled, whole), tokenised_texts(labelled, cut), strict=True)
    for before, after in both:
        if _student_ids(vocabulary_map, before.token_ids) != after.token_ids:
            raise TrainingError(
                f"the {before.what} of row {before.row} has other tokens in the smaller tokenizer "
                f"({type(cut.tokenizer).__name__}): {before.text[:80]!r}",
                **_SETTING,
                fix=_FIX,
            )


def _student_ids(vocabulary_map: VocabularyMap, ids: Sequence[int]) -> list[int]:
    own: list[int] = vocabulary_map.student_ids(np.array(ids, dtype=np.int32)).tolist()
    return own


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _write(file: Path, content: dict[str, Any]) -> None:
    write_atomically(file, json.dumps(content, ensure_ascii=False, indent=2).encode() + b"\n")
