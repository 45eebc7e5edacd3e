"""What a model's files say about it, without loading it and without torch.

A model is named by a local folder or a hub id; both resolve to a folder. Its identity is a hash of its content, so that a
moved or renamed folder is the same teacher and a retrained one is not.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stillhouse.errors import RecipeError, TeacherUnavailable
from stillhouse.inputs.user_files import Unreadable, decode_text, parse_json
from stillhouse.models.weights import sha256_of_weights
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import content_hash

_SAFE = "*.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth")
_HASHED = (_SAFE, "*.bin", "*.py")
_SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.py"]
_INDEX = "model.safetensors.index.json"  # present if the weights are in several files
NO_DECODER_START = "the model is an encoder-decoder without a decoder_start_token_id"
DECODER_START_FIX = (
    "set decoder_start_token_id in its config.json to the id of the token that its decoder begins with (T5 uses its pad "
    "token, 0)"
)
_AT_ONCE = 4  # weight files read in parallel
_SAMPLE = 1 << 16  # bytes of one sample of a weight file, as earlier releases hashed them
_SAMPLES = 64
_SAMPLED_WHOLE = _SAMPLE * _SAMPLES  # bytes: evenly spaced samples cover a file of up to this size completely


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder, and its commit if it came from a hub."""

    name: str
    folder: Path
    revision: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._settings("config.json")

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding, padding included."""
        text = self.config.get("text_config") or {}
        return int(self.config.get("vocab_size") or text["vocab_size"])

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(self.config.get("is_encoder_decoder", False))

    @property
    def decoder_start_id(self) -> int | None:
        """An encoder-decoder's decoder start token; None if neither config sets it, and for a causal model."""
        for settings in (self._generation, self.config):
            start = settings.get("decoder_start_token_id")
            if start is not None:
                return int(start[0] if isinstance(start, list) else start)
        return None

    @cached_property
    def custom_code(self) -> dict[str, str]:
        """The auto classes of transformers for which the model ships code: AutoModelForCausalLM -> modeling_x.XModel."""
        maps = [self._tokenizer_settings.get("auto_map"), self.config.get("auto_map")]
        named = [{"AutoTokenizer": one} if isinstance(one, list) else one or {} for one in maps]  # older: a list
        return {name: str(code) for one in named for name, code in one.items()}

    @property
    def needed_code(self) -> list[str]:
        """The model's own code that loading needs: entries of `custom_code` that transformers has no class for."""
        if not self.custom_code:
            return []
        from transformers import CONFIG_MAPPING
        from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

        kind = self.config.get("model_type")
        tokenizer = tokenizer_class_from_name(self._tokenizer_settings.get("tokenizer_class") or "")
        tokenizer_known = kind in TOKENIZER_MAPPING_NAMES or tokenizer is not None
        return [
            code
            for name, code in self.custom_code.items()
            if not (tokenizer_known if name == "AutoTokenizer" else kind in CONFIG_MAPPING)
        ]

    @cached_property
    def _tokenizer_settings(self) -> dict[str, Any]:
        return self._settings("tokenizer_config.json")

    def _settings(self, name: str) -> dict[str, Any]:
        """Return one of the folder's JSON files; empty if it does not exist."""
        file = self.folder / name
        if not file.is_file():
            return {}
        try:
            settings = parse_json(decode_text(file.read_bytes()))
        except Unreadable as error:
            raise TeacherUnavailable(
                f"{file} cannot be read as JSON: {error}", fix="copy or save the model again"
            ) from None
        if not isinstance(settings, dict):
            raise TeacherUnavailable(f"{file} does not contain a JSON object", fix="copy or save the model again")
        return settings

    @cached_property
    def content_sha256(self) -> str:
        """A hash of the weights, the config, the model's own code, the tokenizer and the chat template.

        All bytes of a weight file count; they are read once, and their hash is cached (weights.py). If no file is larger
        than the samples of earlier releases, which then read all bytes too, the hash is the same as theirs.
        """
        files = self._hashed_files
        if all(file.stat().st_size <= _SAMPLED_WHOLE for file in files):
            return self.sampled_sha256
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            digests = pool.map(sha256_of_weights, files)
        named = [[file.name, digest] for file, digest in zip(files, digests, strict=True)]
        return content_hash([named, self._shape])

    @cached_property
    def sampled_sha256(self) -> str:
        """The `content_sha256` of earlier releases, which hashed 64 samples of 64 KiB of each weight file.

        Answers and students that were paid for are stored under this name and are found by it (docs/labelling.md).
        """
        digest = hashlib.sha256()
        for file in self._hashed_files:
            digest.update(f"{file.name}:{file.stat().st_size}:".encode())
            digest.update(_sampled(file))
        digest.update(content_hash(self._shape).encode())
        return digest.hexdigest()

    @property
    def has_weights(self) -> bool:
        """Whether all weight files exist: a hub model may have been downloaded without them, or in part."""
        index = self.folder / _INDEX
        if not index.is_file():
            return any(self.folder.glob(_SAFE))
        named = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
        return all((self.folder / file).is_file() for file in {*named.values()})

    @property
    def _hashed_files(self) -> list[Path]:
        return sorted(file for pattern in _HASHED for file in self.folder.glob(pattern))

    @property
    def _shape(self) -> list[Any]:
        """The config, the tokenizer hash and the chat template hash, as the content hashes include them."""
        config = {key: value for key, value in self.config.items() if key != "transformers_version"}
        return [config, self.tokenizer_sha256, self.chat_template_sha256]

    @cached_property
    def _generation(self) -> dict[str, Any]:
        return self._settings("generation_config.json")

    @cached_property
    def tokenizer_sha256(self) -> str:
        """A hash of the mapping from text to token ids; files that differ only in formatting have the same one."""
        file = self.folder / "tokenizer.json"
        if file.is_file():
            return _tokenizer_content(self._settings(file.name))
        plain = [
            path
            for name in ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
            if (path := self.folder / name).is_file()
        ]
        if not plain:
            raise TeacherUnavailable(f"the model {self.name} has no tokenizer: {self.folder} has no tokenizer.json")
        return hashlib.sha256(b"\0".join(path.read_bytes() for path in plain)).hexdigest()

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a chat template, or several named ones (of which one must be `default`)."""
        return self.chat_template_sha256 is not None or any(self.folder.glob("additional_chat_templates/*.jinja"))

    @cached_property
    def chat_template_sha256(self) -> str | None:
        """A hash of the chat template; None if the tokenizer has none."""
        file = self.folder / "chat_template.jinja"
        try:
            template: Any = file.read_text(encoding="utf-8") if file.is_file() else None
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"{file} is not UTF-8 ({error.reason} at byte {error.start})", fix="save this chat template as UTF-8"
            ) from None
        if template is None:
            template = self._tokenizer_settings.get("chat_template")
        return None if template is None else hashlib.sha256(json.dumps(template).encode()).hexdigest()

    @property
    def continuing(self) -> str:
        """The runner's `TeacherIdentity.continuing`; without a chat template every text is continued as is."""
        return "" if self.chat_template_sha256 is None else "continue_final_message"


def find_model(
    name: str, revision: str | None = None, setting: str = "teacher.model", *, weights: bool = True
) -> ModelFiles:
    """Return the folder of a model: a local one, or a hub model's, downloaded if it is not in the cache.

    Without `weights`, only the config and the tokenizer of a hub model are downloaded, and a folder's weights go unchecked.

    Raises:
        RecipeError: no model is named, or its weights are not safetensors.
        TeacherUnavailable: no such folder or hub model exists, or the folder is not a model's.
    """
    if not name:
        raise RecipeError(
            "no model is named",
            setting=setting,
            value=name,
            fix="set it to a model's folder or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct",
        )
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise TeacherUnavailable(
                "the folder has no config.json",
                setting=setting,
                value=name,
                fix="set it to a folder that save_pretrained wrote",
            )
        files = ModelFiles(name, folder, revision)
    else:
        files = _from_hub(name, revision, setting, [*((_SAFE,) if weights else ()), *_SMALL])
    if weights:
        refuse_pickles(files, setting)
    return files


def teacher_files(recipe: Recipe, *, weights: bool = True) -> ModelFiles:
    """Return the files of a recipe's teacher; `weights` as in `find_model`.

    Raises:
        RecipeError: the teacher has no files to take layers or a tokenizer from, no name, or no safetensors weights.
        TeacherUnavailable: the model cannot be found, or the teacher has not been fine-tuned yet.
    """
    if not has_local_files(recipe.teacher):
        raise RecipeError(
            f"the student starts from the teacher, but the files of a teacher of kind {recipe.teacher.kind!r} are not "
            "accessible",
            setting="student.init",
            fix="set it to {model: a folder or a hub id}",
        )
    return labelling_files(recipe.teacher, weights=weights)


def labelling_files(teacher: TeacherSettings, *, weights: bool = True) -> ModelFiles:
    """Return the files of the model that labels: `teacher.model`, or the result of `teacher.finetune`.

    Raises:
        RecipeError: no model is named, or its weights are not safetensors.
        TeacherUnavailable: the model cannot be found, or the teacher has not been fine-tuned yet.
    """
    if teacher.finetune is None:
        return find_model(teacher.model, teacher.revision, weights=weights)
    if not (Path(teacher.finetune.folder) / "config.json").is_file():
        raise TeacherUnavailable(
            f"the teacher has not been fine-tuned yet: {teacher.finetune.folder} does not exist",
            setting="teacher.finetune",
            fix="run `stillhouse finetune` with the same recipe first, or `stillhouse run`, which starts with it",
        )
    return find_model(teacher.finetune.folder, setting="teacher.finetune", weights=weights)


def init_model_files(recipe: Recipe, student: StudentSettings, *, weights: bool = True) -> ModelFiles:
    """Return the files that a student starts from: those of `student.init.model`, or the teacher's.

    Raises:
        RecipeError: the model is not named, has no safetensors weights, or is a teacher without files.
        TeacherUnavailable: the model cannot be found, or the teacher has not been fine-tuned yet.
    """
    init = student.init
    if init.model is not None:
        return find_model(init.model, init.revision, student.setting("init.model"), weights=weights)
    return teacher_files(recipe, weights=weights and init.config is None)


def refuse_untrusted_code(files: ModelFiles, setting: str, trust: str, *, trusted: bool) -> None:
    """Refuse a model that only its own code can load, unless that code is trusted.

    Args:
        files: the model's files.
        setting: the setting that names the model.
        trust: the setting that lets its code run.
        trusted: the value of that setting.

    Raises:
        RecipeError: the code is needed and not trusted.
    """
    if not trusted and (needed := files.needed_code):
        raise RecipeError(
            f"only code that comes with the model can load it ({', '.join(needed)}), and {trust} is false",
            setting=setting,
            value=files.name,
            fix=f"read that code, then set {trust} to true, or use a model that transformers has built in",
        )


def refuse_without_decoder_start(files: ModelFiles, setting: str) -> None:
    """Refuse an encoder-decoder without a decoder start token.

    Raises:
        RecipeError: neither its generation_config.json nor its config.json sets decoder_start_token_id.
    """
    if files.is_encoder_decoder and files.decoder_start_id is None:
        raise RecipeError(NO_DECODER_START, setting=setting, value=files.name, fix=DECODER_START_FIX)


def has_local_files(teacher: TeacherSettings) -> bool:
    """Whether this kind of teacher is a model whose files are accessible."""
    return teacher.kind in {"transformers", "vllm"}


def can_load_in_process(teacher: TeacherSettings) -> bool:
    """Whether the teacher can be loaded in this process: by its kind, or because a server's weights are on this machine."""
    return teacher.kind == "transformers" or (teacher.kind == "vllm" and Path(teacher.model).is_dir())


def refuse_pickles(files: ModelFiles, setting: str) -> None:
    """Refuse a folder without safetensors: other weights are not read, because unpickling runs arbitrary code.

    Raises:
        RecipeError: the folder has no safetensors file.
    """
    if any(files.folder.glob(_SAFE)):
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in files.folder.glob(pattern))
    found = f"its weights are a pickle ({', '.join(pickles[:3])})" if pickles else "it has no safetensors weights"
    raise RecipeError(
        f"{found}, and only safetensors are loaded, because a pickle can run any code",
        setting=setting,
        value=files.name,
        fix="if you trust the model, convert it once with "
        "AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder), save its tokenizer there too, and use "
        "that folder",
    )


def _from_hub(name: str, revision: str | None, setting: str, files: list[str]) -> ModelFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    demo = ", or run `stillhouse teacher fetch-demo`, which downloads the quickstart's teacher"
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise TeacherUnavailable(
            f"there is no such folder, and the hub has no such model or cannot be reached ({reason.rstrip('.')})",
            setting=setting,
            value=name,
            fix="check the path or the id" + (demo if "smollm2" in name.lower() else ""),
        ) from error
    return ModelFiles(name, folder, folder.name)


def _sampled(file: Path) -> bytes:
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for index in range(_SAMPLES):
            stream.seek(index * max(size - _SAMPLE, 0) // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE))
    return digest.digest()


def _tokenizer_content(tokenizer: dict[str, Any]) -> str:
    """Hash what determines the ids; library versions differ in writing merges as "a b" or ["a", "b"]."""
    model = dict(tokenizer["model"])
    model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []]
    added = sorted((token["id"], token["content"]) for token in tokenizer.get("added_tokens") or [])
    shaping = [model["vocab"], model["merges"], added, tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")]
    return hashlib.sha256(json.dumps(shaping, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
