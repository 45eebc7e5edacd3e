"""Read configs with transformers, and check that they are a student's: a causal model's or an encoder-decoder's.

config = read_config(files, "student.init.model", trust_remote_code=False)
refuse_unsupported_model(config, "student.init.model", files.name)          # no classifier, no headless model
refuse_mismatched_kind(recipe, config, "student.init.model", files.name)   # a T5 does not learn from a Llama
"""

from __future__ import annotations

import re

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from stillhouse.errors import RecipeError, TeacherUnavailable
from stillhouse.models.files import ModelFiles
from stillhouse.models.find import find_model, has_local_files
from stillhouse.models.load import quiet_transformers
from stillhouse.recipe.recipe import Recipe

LANGUAGE_MODELS = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
_SAVED_AS = "a causal language model (one saved as ...ForCausalLM) or an encoder-decoder (...ForConditionalGeneration)"


def read_config(files: ModelFiles, setting: str, *, trust_remote_code: bool) -> PretrainedConfig:
    """Read a model's config with transformers.

    Raises:
        RecipeError: transformers cannot read the config.
    """
    quiet_transformers()
    try:
        return AutoConfig.from_pretrained(files.folder, trust_remote_code=trust_remote_code)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise RecipeError(
            f"transformers cannot read its config.json ({first_line(error)})",
            setting=setting,
            value=files.name,
            fix="use another model, or correct the file",
        ) from None


def first_line(error: Exception) -> str:
    """Return the essential line of a library error, without its heading and details."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1] if isinstance(error, StrictDataclassError) else lines[0]
    return re.sub(r"^\w+Error: ", "", line).rstrip(".")


def refuse_unsupported_model(config: PretrainedConfig, setting: str, name: str) -> None:
    """Refuse a model that is neither a causal language model nor an encoder-decoder of text.

    Raises:
        RecipeError: the model is neither, or lacks its head, or (an encoder-decoder) has two vocabularies.
    """
    if config.is_encoder_decoder:
        _refuse_other_encoder_decoders(config, setting, name)
        return
    kind, own = config.model_type, getattr(config, "auto_map", None) or {}
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in own
    both_ways = getattr(config, "is_decoder", None) is False and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    heads = config.architectures or []
    mapped = {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind), str(own.get("AutoModelForCausalLM")).rpartition(".")[2]}
    headed = not heads or any("CausalLM" in head or "LMHead" in head or head in mapped for head in heads)
    if not causal or both_ways or not headed:
        raise RecipeError(
            f"the model is a {_kind_of_model(config)}, but a student predicts the next token from those before it",
            setting=setting,
            value=name,
            fix=f"use {_SAVED_AS}",
        )


def _refuse_other_encoder_decoders(config: PretrainedConfig, setting: str, name: str) -> None:
    kind, own = config.model_type, getattr(config, "auto_map", None) or {}
    of_text = kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES or "AutoModelForSeq2SeqLM" in own
    heads = config.architectures or []
    mapped = {
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.get(kind),
        str(own.get("AutoModelForSeq2SeqLM")).rpartition(".")[2],
    }
    headed = not heads or any("ForConditionalGeneration" in head or head in mapped for head in heads)
    if not of_text or not headed:
        raise RecipeError(
            f"the model is a {_kind_of_model(config)}, but an encoder-decoder student reads text and predicts the "
            "next token of its answer",
            setting=setting,
            value=name,
            fix=f"use {_SAVED_AS}",
        )
    written = getattr(config, "tgt_vocab_size", None) or getattr(config, "decoder_vocab_size", None)  # FSMT, Marian
    read = getattr(config, "src_vocab_size", None) or getattr(config, "vocab_size", None)
    if written is not None and written != read:
        raise RecipeError(
            f"the model is a {kind} that reads one vocabulary ({read} tokens) and writes another ({written})",
            setting=setting,
            value=name,
            fix="use an encoder-decoder with one vocabulary, such as a T5 or a BART",
        )


def _kind_of_model(config: PretrainedConfig) -> str:
    return ", ".join(config.architectures or []) or f"model of type {config.model_type}"


def refuse_mismatched_kind(recipe: Recipe, config: PretrainedConfig, setting: str, name: str) -> None:
    """Refuse a student of the other kind than its teacher, causal or encoder-decoder.

    A teacher behind an API returns text, from which either kind learns; a teacher whose files are missing is not checked.

    Args:
        recipe: the recipe, which names the teacher.
        config: the student's config.
        setting: the setting that names the student.
        name: the value of that setting.

    Raises:
        RecipeError: one is causal, and the other an encoder-decoder.
    """
    if not has_local_files(recipe.teacher):
        return
    try:
        teacher = find_model(recipe.teacher.model, recipe.teacher.revision, weights=False)
    except TeacherUnavailable:
        return
    if teacher.is_encoder_decoder == config.is_encoder_decoder:
        return
    kinds = ("a causal language model", "an encoder-decoder")
    theirs, own = kinds[teacher.is_encoder_decoder], kinds[config.is_encoder_decoder]
    raise RecipeError(
        f"the student is {own} ({config.model_type}), and teacher.model ({teacher.name}) is {theirs} "
        f"({teacher.config.get('model_type')}): a causal model continues its prompt, while an encoder-decoder reads it in "
        "its encoder and starts a new sequence, so the tokens of one do not fit the other",
        setting=setting,
        value=name,
        fix=f"use a student that is {theirs}, or a teacher that is {own}; from a teacher behind an API (teacher.kind "
        "openai) either kind can learn the text",
    )
