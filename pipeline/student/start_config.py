"""What a student will be, said by configs alone: everything that can be refused before any weights are loaded.

    check_start(recipe, student)                 # the model, the layers or the config that `student.init` names
    made = fresh_config(recipe, student)         # for {config: ...}: the teacher's, changed, or one of its own

transformers takes any key of a config in silence, and finds out about widths that do not fit in the middle of a forward
pass. Here keys are held against the config's class, and a model of the config runs over some tokens without memory
(FakeTensorMode), so that both are told of in words.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from pipeline.config import Recipe
from pipeline.errors import RecipeError
from pipeline.language_model import load_tokenizer, quiet_transformers
from pipeline.model_files import ModelFiles, refuse_own_code, refuse_pickles, start_files
from pipeline.settings import nearest
from pipeline.student_settings import StudentSettings

_KEY = "student.init.config"
_WIDTHS = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
_COUNTS = (*_WIDTHS, "num_hidden_layers", "vocab_size", "max_position_embeddings")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SHAPES = re.compile(r"size|shape|dim|divi|multiple", re.IGNORECASE)  # what a forward pass says of unfit widths


def check_start(recipe: Recipe, student: StudentSettings) -> None:
    """Refuse a start that no student can be made from, by its files and its config alone.

    Raises:
        RecipeError: the model is none that can be a student, the teacher lacks the layers, or the config is no model's.
        TeacherUnavailable: a model that is named is not there.
    """
    files = start_files(recipe, student.init, weights=False)
    setting = "teacher.model" if student.init.model is None else "student.init.model"
    refuse_own_code(files, setting, "student.trust_remote_code", trusted=student.trust_remote_code)
    config = read_config(files, setting, trust_remote_code=student.trust_remote_code)
    if student.init.config is None or "model_type" not in student.init.config:
        _refuse_others(config, setting, files.name)
    if student.init.config is None and getattr(config, "quantization_config", None):
        raise RecipeError(
            f"{setting} is {files.name}, whose weights are quantised: a student learns with whole ones, start from the "
            "model that it was made of"
        )
    if student.init.config is not None:
        _try(fresh_config(recipe, student), trust_remote_code=student.trust_remote_code)
        return
    if student.init.layers is not None:
        kept_layers(config, student.init.layers)
    if Path(files.name).is_dir():  # a hub model's weights are fetched when they are needed
        refuse_pickles(files, setting)


def without_weights(recipe: Recipe, student: StudentSettings) -> PreTrainedModel:
    """The student's layers by name and shape, on the meta device; a teacher's whole depth where layers are copied.

    Raises:
        RecipeError, TeacherUnavailable: as `check_start` does.
    """
    if student.init.config is not None:
        config = fresh_config(recipe, student)
    else:
        files = start_files(recipe, student.init, weights=False)
        config = read_config(files, "student.init", trust_remote_code=student.trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=student.trust_remote_code)


def read_config(files: ModelFiles, setting: str, *, trust_remote_code: bool) -> PretrainedConfig:
    """A model's config as transformers reads it.

    Raises:
        RecipeError: it is none that transformers can read.
    """
    quiet_transformers()
    try:
        return AutoConfig.from_pretrained(files.folder, trust_remote_code=trust_remote_code)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise RecipeError(
            f"{setting} is {files.name}, whose config.json transformers cannot read ({_first_line(error)}): name another "
            "model, or mend the file"
        ) from None


def kept_layers(config: PretrainedConfig, layers: int | Sequence[int]) -> list[int]:
    """Which layers of the teacher a student keeps, counted from 0: so many, evenly spaced, or the ones that are listed.

    Raises:
        RecipeError: the teacher does not have them.
    """
    depth = getattr(config, "num_hidden_layers", None)
    if depth is None:
        raise RecipeError(
            f"student.init takes layers of the teacher, and a {config.model_type} model has several parts with layers: set "
            "student.init to {model: a small text model of the same tokenizer}"
        )
    if isinstance(layers, int) and layers > depth:
        raise RecipeError(f"student.init.layers is {layers}, and the teacher has only {depth}: choose 1 to {depth}")
    kept = evenly_spaced(layers, depth) if isinstance(layers, int) else [*layers]
    if max(kept) >= depth:
        raise RecipeError(f"student.init.layers names layer {max(kept)}, and the teacher's are 0 to {depth - 1}")
    return kept


def evenly_spaced(layers: int, of: int) -> list[int]:
    """Which layers a shallower student keeps: evenly spaced, the first and the last among them."""
    if layers == 1:
        return [0]
    return [round(place * (of - 1) / (layers - 1)) for place in range(layers)]


def with_layers(config: PretrainedConfig, kept: Sequence[int]) -> dict[str, Any]:
    """The settings of a config for these of its layers; where it lists one value a layer, theirs (layer_types of Gemma)."""
    depth = int(config.num_hidden_layers)
    settings: dict[str, Any] = config.to_dict()
    for key, value in settings.items():
        if isinstance(value, list) and len(value) == depth and not key.endswith("token_id") and key != "architectures":
            settings[key] = [value[layer] for layer in kept]
    settings[_own_name(config, "num_hidden_layers")] = len(kept)
    return settings


# ----------------------------------------------------------------------------------------------------------- fresh configs


def fresh_config(recipe: Recipe, student: StudentSettings) -> PretrainedConfig:
    """The config of `student.init.config`: with a `model_type` on its own, without it the teacher's with these changes.

    Either way its vocabulary and the tokens that end an answer are the teacher's, where it says nothing else.

    Raises:
        RecipeError: a key is unknown, or the values make no model.
    """
    given = dict(student.init.config or {})
    files = start_files(recipe, student.init)
    teacher = read_config(files, "teacher.model", trust_remote_code=student.trust_remote_code)
    for key in _COUNTS:
        if key in given and not (isinstance(given[key], int) and given[key] >= 1):
            raise RecipeError(f"{_KEY}.{key} is {given[key]!r}: give a whole number from 1 up")
    made = _config_of_its_own(given, files, teacher) if "model_type" in given else _changed(given, teacher)
    rows = int(made.get_text_config().vocab_size)
    tokenizer = load_tokenizer(files.folder, trust_remote_code=student.trust_remote_code)
    tokens = 1 + max(tokenizer.get_vocab().values())
    if rows < tokens:
        raise RecipeError(
            f"{_KEY}.vocab_size is {rows}, and the teacher's tokenizer has {tokens} tokens: give at least {tokens}, or "
            f"leave it out for the teacher's {files.vocabulary_size}"
        )
    return made


def _config_of_its_own(given: dict[str, Any], files: ModelFiles, teacher: PretrainedConfig) -> PretrainedConfig:
    kind = str(given.pop("model_type"))
    if kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(kind, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RecipeError(
            f"{_KEY}.model_type is {kind!r}: name a causal language model that transformers knows, such as llama.{hint}"
        )
    made = CONFIG_MAPPING[kind]
    with _refused_widths(given):
        bare = made(**{key: value for key, value in given.items() if key == "is_decoder"})
    _refuse_others(bare, f"{_KEY}.model_type", kind)
    if bare.get_text_config() is not bare:
        raise RecipeError(
            f"{_KEY}.model_type is {kind!r}, which has several configs in one: name its text part, "
            f"{bare.get_text_config().model_type!r}"
        )
    _refuse_unknown(given, _keys(made), kind)
    defaults = {"vocab_size": files.vocabulary_size, **ending(files, teacher).to_diff_dict()}
    known = {_own_name(made, key): value for key, value in defaults.items() if key in ("vocab_size", *_TOKENS)}
    known.setdefault("pad_token_id", None)  # not the class's own, which may be no token here
    own = {_own_name(made, key): value for key, value in given.items()}
    with _refused_widths(own):
        return made(**(known | own))


def _changed(given: dict[str, Any], teacher: PretrainedConfig) -> PretrainedConfig:
    if teacher.get_text_config() is not teacher:
        raise RecipeError(
            f"{_KEY} has no model_type, so it changes the teacher's config, and a {teacher.model_type} has several in one: "
            "add the model_type of its text part, or set student.init to {model: ...}"
        )
    _refuse_unknown(given, _keys(type(teacher)) | teacher.to_dict().keys(), teacher.model_type)
    changes = {_own_name(teacher, key): value for key, value in given.items()}
    depth = changes.get(_own_name(teacher, "num_hidden_layers"), teacher.num_hidden_layers)
    settings = with_layers(teacher, evenly_spaced(depth, teacher.num_hidden_layers))
    settings |= _followers(teacher, given) | {"dtype": None} | changes
    settings.pop("quantization_config", None)  # of weights that are not taken
    with _refused_widths(settings):
        return type(teacher).from_dict(settings)


def _followers(teacher: PretrainedConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Widths that follow from others in the teacher, and so do in the student where it does not say them."""
    heads, width = teacher.num_attention_heads, teacher.hidden_size
    new_heads, new_width = given.get("num_attention_heads", heads), given.get("hidden_size", width)
    following = {}
    if getattr(teacher, "num_key_value_heads", None) == heads:
        following["num_key_value_heads"] = new_heads
    if getattr(teacher, "head_dim", None) == width // heads:
        following["head_dim"] = max(new_width // new_heads, 1)
    return {key: value for key, value in following.items() if key in teacher.to_dict()}


def ending(files: ModelFiles, config: PretrainedConfig) -> GenerationConfig:
    """The tokens that begin, end and pad the answers of a model."""
    file = files.folder / "generation_config.json"
    own = GenerationConfig.from_pretrained(files.folder) if file.is_file() else config.get_text_config()
    return GenerationConfig(**{name: getattr(own, name, None) for name in _TOKENS})


# ---------------------------------------------------------------------------------------------------------- what is refused


def _refuse_others(config: PretrainedConfig, setting: str, name: str) -> None:
    """Only a causal language model can be a student."""
    kind = config.model_type
    if config.is_encoder_decoder:
        raise RecipeError(
            f"{setting} is {name}, an encoder-decoder ({kind}): encoder-decoder models come later, name a causal language "
            "model"
        )
    own = getattr(config, "auto_map", None) or {}
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in own
    both_ways = getattr(config, "is_decoder", None) is False and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    heads = config.architectures or []
    mapped = {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind), str(own.get("AutoModelForCausalLM")).rpartition(".")[2]}
    headed = not heads or any("CausalLM" in head or "LMHead" in head or head in mapped for head in heads)
    if not causal or both_ways or not headed:
        what = ", ".join(heads) or f"model of type {kind}"
        raise RecipeError(
            f"{setting} is {name}, a {what}: a student foretells the next token from those before it, name a causal "
            "language model (one saved as ...ForCausalLM)"
        )


def _refuse_unknown(given: dict[str, Any], known: set[str], kind: str) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        lines = (f"{_KEY}.{key}: a {kind} config has no such key.{nearest(key, sorted(known))}" for key in unknown)
        raise RecipeError("\n".join(lines))


def _keys(kind: type[PretrainedConfig]) -> set[str]:
    """What a config of this class knows, under every name that it has there."""
    named = {field.name for field in fields(kind)} if is_dataclass(kind) else set(kind().to_dict())
    return named | set(kind.attribute_map)


def _own_name(config: PretrainedConfig | type[PretrainedConfig], key: str) -> str:
    """What this kind of config calls a setting: GPT-2 says n_layer for num_hidden_layers."""
    return str(config.attribute_map.get(key, key))


def _try(config: PretrainedConfig, *, trust_remote_code: bool) -> None:
    """Run a model of this config over some tokens, without weights and without memory."""
    with _refused_widths(config), _without_memory():
        heads, shared = (getattr(config, key, None) for key in ("num_attention_heads", "num_key_value_heads"))
        if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
            raise ValueError(f"{shared} key-value heads cannot be shared out among {heads} attention heads")
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=trust_remote_code)
        try:
            model.eval()(input_ids=torch.zeros(1, 4, dtype=torch.int64), use_cache=False)
        except RuntimeError as error:
            if _SHAPES.search(str(error)):
                raise ValueError(str(error)) from None


@contextmanager
def _without_memory() -> Iterator[None]:
    """Tensors are shapes alone here; what torch logs of those that do not fit is in the error anyway."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        log.disabled = before


@contextmanager
def _refused_widths(settings: Any) -> Iterator[None]:
    """Whatever the library says against a config, as an error that names the widths and the mend."""
    try:
        yield
    except (ValueError, TypeError, AssertionError, ZeroDivisionError, StrictDataclassError) as error:
        named = settings if isinstance(settings, dict) else {key: getattr(settings, key, None) for key in _WIDTHS}
        widths = ", ".join(f"{key} {named[key]}" for key in _WIDTHS if named.get(key) is not None)
        raise RecipeError(
            f"{_KEY} makes no model ({widths}): {_first_line(error)}. num_attention_heads must divide hidden_size, "
            "num_key_value_heads must divide num_attention_heads, head_dim must be even: change what does not fit"
        ) from None


def _first_line(error: Exception) -> str:
    """What the library says, without its heading and what follows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1] if isinstance(error, StrictDataclassError) else lines[0]
    return re.sub(r"^\w+Error: ", "", line).rstrip(".")
