"""The config of a student with random weights: the teacher's with changes, or an independent one.

    made = fresh_config(recipe, student)         # for student.init {config: ...}
    dry_run(made, setting, trust_remote_code=False)

transformers silently accepts any key in a config, and detects mismatched widths only during a forward pass. Here keys are
checked against the config's class, and a model of the config runs on a few tokens without allocating memory
(FakeTensorMode), so that both errors are reported in plain words.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CONFIG_MAPPING, GenerationConfig, PretrainedConfig

from stillhouse.errors import RecipeError, RecipeFaults
from stillhouse.models.files import ModelFiles
from stillhouse.models.find import init_model_files
from stillhouse.models.load import auto_class, load_tokenizer
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.settings import nearest
from stillhouse.student.start.kinds import (
    LANGUAGE_MODELS,
    first_line,
    read_config,
    refuse_mismatched_kind,
    refuse_unsupported_model,
)
from stillhouse.student.start.stacks import Kept, config_for_layers, evenly_spaced, native_key, stacks_of

_WIDTHS = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
_WIDTHS_OF_TWO = (  # the names in encoder-decoders
    *("d_model", "num_heads", "d_kv", "d_ff", "encoder_attention_heads", "decoder_attention_heads"),
    *("encoder_ffn_dim", "decoder_ffn_dim"),
)
_DEPTHS_OF_TWO = ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
_COUNTS = (*_WIDTHS, "num_hidden_layers", "vocab_size", "max_position_embeddings")
_START = "decoder_start_token_id"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", _START)
_DERIVED = {  # settings that a config derives from another one and also saves (T5)
    "feed_forward_proj": ("dense_act_fn", "is_gated_act"),
    "tie_word_embeddings": ("scale_decoder_outputs",),
}
_SHAPES = re.compile(r"size|shape|dim|divi|multiple", re.IGNORECASE)  # words in a forward pass's errors about widths


def fresh_config(recipe: Recipe, student: StudentSettings) -> PretrainedConfig:
    """Return the config of `student.init.config`: independent if it has a `model_type`, else the teacher's with changes.

    In both cases the vocabulary size and the tokens that begin, end and pad an answer default to the teacher's.

    Raises:
        RecipeError: a key is unknown, the values make no model, or the model is of the other kind than the teacher.
    """
    given = dict(student.init.config or {})
    files = init_model_files(recipe, student)
    teacher = read_config(files, "teacher.model", trust_remote_code=student.trust_remote_code)
    setting = student.setting("init.config")
    if "model_type" in given:
        made = _independent_config(recipe, given, files, teacher, setting)
    else:
        made = _changed_config(given, files, teacher, setting)
    if made.is_encoder_decoder and getattr(made, _START, None) is None:
        raise RecipeError(
            f"it makes an encoder-decoder ({made.model_type}), and the teacher {files.name} has no {_START} that it could "
            "inherit",
            setting=setting,
            fix=f"add {setting}.{_START}, the id of the token that the decoder begins with (T5 uses its pad token, 0)",
        )
    rows = int(made.get_text_config().vocab_size)
    tokenizer = load_tokenizer(files.folder, trust_remote_code=student.trust_remote_code)
    tokens = 1 + max(tokenizer.get_vocab().values())
    if rows < tokens:
        raise RecipeError(
            f"the teacher's tokenizer has {tokens} tokens",
            setting=f"{setting}.vocab_size",
            value=rows,
            fix=f"set it to at least {tokens}, or remove it to use the teacher's {files.vocabulary_size}",
        )
    return made


def special_tokens(files: ModelFiles, config: PretrainedConfig) -> GenerationConfig:
    """Return the tokens that begin, end and pad a model's answers."""
    file = files.folder / "generation_config.json"
    own = GenerationConfig.from_pretrained(files.folder) if file.is_file() else config.get_text_config()
    tokens = {name: getattr(own, name, None) for name in _TOKENS}
    return GenerationConfig(**tokens | {_START: files.decoder_start_id if config.is_encoder_decoder else None})


def special_tokens_for_config(
    files: ModelFiles, teacher: PretrainedConfig, student: StudentSettings
) -> GenerationConfig:
    """Return the special tokens of a student of `student.init.config`: the teacher's, unless the config sets them."""
    given = student.init.config or {}
    tokens = special_tokens(files, teacher).to_dict() | {name: given[name] for name in _TOKENS if name in given}
    return GenerationConfig(**{name: tokens.get(name) for name in _TOKENS})


# ----------------------------------------------------------------------------------------------- the two kinds of config


def _independent_config(
    recipe: Recipe, given: dict[str, Any], files: ModelFiles, teacher: PretrainedConfig, setting: str
) -> PretrainedConfig:
    kind = str(given.pop("model_type"))
    if kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(kind, LANGUAGE_MODELS, n=1)
        raise RecipeError(
            "transformers has no causal language model or encoder-decoder of this type",
            setting=f"{setting}.model_type",
            value=kind,
            fix=f"use {near[0]!r}, or another type such as llama or t5" if near else "use a type such as llama or t5",
        )
    made = CONFIG_MAPPING[kind]
    with _refused_widths(given, setting):
        bare = made(**{key: value for key, value in given.items() if key in ("is_decoder", "is_encoder_decoder")})
    refuse_unsupported_model(bare, f"{setting}.model_type", kind)
    refuse_mismatched_kind(recipe, bare, f"{setting}.model_type", kind)
    if bare.get_text_config() is not bare:
        text = f"use its text part, {bare.get_text_config().model_type!r}"
        raise RecipeError(
            "a model of this type has several configs in one",
            setting=f"{setting}.model_type",
            value=kind,
            fix="use an encoder-decoder with one config, such as t5 or bart" if bare.is_encoder_decoder else text,
        )
    _refuse_unknown_keys(given, _keys(made), kind, setting)
    _refuse_invalid_counts(given, made, setting)
    tokens = {name: id_ for name, id_ in special_tokens(files, teacher).to_diff_dict().items() if name in _TOKENS}
    if not bare.is_encoder_decoder:
        tokens.pop(_START, None)
    known = {native_key(made, key): value for key, value in {"vocab_size": files.vocabulary_size, **tokens}.items()}
    known.setdefault("pad_token_id", None)  # not the class's own, which may be no token here
    own = {native_key(made, key): value for key, value in _copy_to_both_stacks(given, made).items()}
    with _refused_widths(own, setting):
        return made(**(known | own))


def _changed_config(
    given: dict[str, Any], files: ModelFiles, teacher: PretrainedConfig, setting: str
) -> PretrainedConfig:
    if teacher.get_text_config() is not teacher:
        raise RecipeError(
            f"it has no model_type, so it changes the teacher's config, but a {teacher.model_type} has several "
            "configs in one",
            setting=setting,
            fix="set student.init to {from: teacher, layers: ...} or {model: ...}"
            if teacher.is_encoder_decoder
            else "add the model_type of its text part, or set student.init to {model: ...}",
        )
    _refuse_unknown_keys(given, _keys(type(teacher)) | teacher.to_dict().keys(), teacher.model_type, setting)
    _refuse_invalid_counts(given, type(teacher), setting)
    changes = {native_key(teacher, key): value for key, value in _copy_to_both_stacks(given, type(teacher)).items()}
    depths = [(stack, changes.get(stack.count, stack.depth)) for stack in stacks_of(teacher)]
    kept = [Kept(stack, tuple(evenly_spaced(depth, stack.depth))) for stack, depth in depths]
    settings = config_for_layers(teacher, kept) | _derived_widths(teacher, given) | {"dtype": None}
    if teacher.is_encoder_decoder:
        settings[_START] = files.decoder_start_id
    for key in given.keys() & _DERIVED.keys():
        for derived in _DERIVED[key]:
            settings.pop(derived, None)
    settings |= changes
    settings.pop("quantization_config", None)  # it describes weights that are not used
    with _refused_widths(settings, setting):
        return type(teacher).from_dict(settings)


def _derived_widths(teacher: PretrainedConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Return the widths that follow from others in the teacher, and so in the student unless it sets them.

    T5's head width, d_kv, is independent of the model's width and stays the same.
    """
    if teacher.is_encoder_decoder:
        return {}
    heads, width = teacher.num_attention_heads, teacher.hidden_size
    new_heads, new_width = given.get("num_attention_heads", heads), given.get("hidden_size", width)
    following = {}
    if getattr(teacher, "num_key_value_heads", None) == heads:
        following["num_key_value_heads"] = new_heads
    if getattr(teacher, "head_dim", None) == width // heads:
        following["head_dim"] = max(new_width // new_heads, 1)
    return {key: value for key, value in following.items() if key in teacher.to_dict()}


def _copy_to_both_stacks(given: dict[str, Any], kind: type[PretrainedConfig]) -> dict[str, Any]:
    """Copy a setting given under its general name to both stacks of an encoder-decoder, if each has a key of its own."""
    known = _keys(kind)
    both = dict(given)
    for key in given:
        own = native_key(kind, key)
        twin = "num_decoder_layers" if key == "num_hidden_layers" and own == "num_layers" else None
        twin = own.replace("encoder_", "decoder_") if own.startswith("encoder_") and own != key else twin
        if twin in known:
            both.setdefault(twin, given[key])
    return both


# ------------------------------------------------------------------------------------------------------------------- checks


def _refuse_unknown_keys(given: dict[str, Any], known: set[str], kind: str, setting: str) -> None:
    faults = [
        RecipeError(f"a {kind} config has no such key", setting=f"{setting}.{key}", fix=nearest(key, sorted(known)))
        for key in given
        if key not in known
    ]
    if faults:
        raise faults[0] if len(faults) == 1 else RecipeFaults.of(faults)


def _refuse_invalid_counts(given: dict[str, Any], kind: type[PretrainedConfig], setting: str) -> None:
    counts = {*_COUNTS, *(native_key(kind, key) for key in _COUNTS), *_WIDTHS_OF_TWO, *_DEPTHS_OF_TWO}
    for key, value in given.items():
        if key in counts and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise RecipeError("it must be a whole number, 1 or more", setting=f"{setting}.{key}", value=value)


def _keys(kind: type[PretrainedConfig]) -> set[str]:
    """Return the keys that a config of this class accepts, with their aliases."""
    named = {field.name for field in fields(kind)} if is_dataclass(kind) else set(kind().to_dict())
    encoder_decoder = getattr(kind, "is_encoder_decoder", False)  # whose config accepts this key, though not its class
    return named | set(kind.attribute_map) | ({_START} if encoder_decoder else set())


def dry_run(config: PretrainedConfig, setting: str, *, trust_remote_code: bool) -> None:
    """Run a model of this config on a few tokens, without weights and without allocating memory.

    Args:
        config: the student's config.
        setting: the setting that gives the config.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        RecipeError: the config's widths do not fit together.
    """
    with _refused_widths(config, setting), _without_memory():
        heads, shared = (getattr(config, key, None) for key in ("num_attention_heads", "num_key_value_heads"))
        if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
            raise ValueError(f"{heads} attention heads cannot share {shared} key-value heads evenly")
        model = auto_class(config).from_config(config, dtype=torch.bfloat16, trust_remote_code=trust_remote_code)
        tokens = torch.zeros(1, 4, dtype=torch.int64)
        decoder = {"decoder_input_ids": tokens} if config.is_encoder_decoder else {}
        try:
            model.eval()(input_ids=tokens, **decoder, use_cache=False)
        except RuntimeError as error:
            if _SHAPES.search(str(error)):
                raise ValueError(str(error)) from None


@contextmanager
def _without_memory() -> Iterator[None]:
    """Make tensors without data; torch's log of mismatched shapes is off, because the error has it too."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        log.disabled = before


@contextmanager
def _refused_widths(settings: Any, setting: str) -> Iterator[None]:
    """Convert the library's errors about a config to one that names the widths and the fix."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AssertionError, ZeroDivisionError, StrictDataclassError) as error:
        names = (*_WIDTHS, *_WIDTHS_OF_TWO)
        named = settings if isinstance(settings, dict) else {key: settings.to_dict().get(key) for key in names}
        widths = ", ".join(f"{key} {named[key]}" for key in names if named.get(key) is not None)
        raise RecipeError(
            f"no model can be built from it ({widths}): {first_line(error)}", setting=setting, fix=_width_advice(named)
        ) from None


def _width_advice(widths: dict[str, Any]) -> str:
    if "d_kv" in widths and widths["d_kv"] is not None:
        return (
            "check feed_forward_proj (relu, gated-gelu, ...) and the relative_attention_ settings; the d_kv * "
            "num_heads of a T5 does not depend on d_model"
        )
    if widths.get("encoder_attention_heads") is not None or widths.get("decoder_attention_heads") is not None:
        return "set encoder_attention_heads and decoder_attention_heads to divisors of d_model"
    return (
        "change the widths so that num_attention_heads divides hidden_size, num_key_value_heads divides "
        "num_attention_heads, and head_dim is even"
    )
