"""What a model's files say about it, without loading it and without torch.

A model is a folder, named by its path or by a hub id (find.py). Its identity is a hash of its content, so that a moved or
renamed folder is the same teacher and a retrained one is not.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from stillhouse.errors import RecipeError, TeacherUnavailable
from stillhouse.inputs.user_files import Unreadable, decode_text, parse_json
from stillhouse.models.weights import FileState, file_state, sha256_of_weights
from stillhouse.records import content_hash

SAFETENSORS = "*.safetensors"
_HASHED = (SAFETENSORS, "*.bin", "*.py")
_INDEX = "model.safetensors.index.json"  # present if the weights are in several files
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
            return any(self.folder.glob(SAFETENSORS))
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

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer by the model's settings; the tokenizer may name another."""
        configured = self._generation.get("eos_token_id", self.config.get("eos_token_id"))
        listed = configured if isinstance(configured, list) else [configured]
        return [int(token) for token in listed if token is not None]

    @cached_property
    def tokenizer_sha256(self) -> str:
        """A hash of the mapping from text to token ids; files that differ only in formatting have the same one."""
        file = self.folder / "tokenizer.json"
        if file.is_file():
            return _tokenizer_content(self, file_state(file))
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


def _sampled(file: Path) -> bytes:
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for index in range(_SAMPLES):
            stream.seek(index * max(size - _SAMPLE, 0) // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE))
    return digest.digest()


@lru_cache(maxsize=64)
def _tokenizer_content(files: ModelFiles, state: FileState) -> str:
    """Hash what determines the ids; library versions differ in writing merges as "a b" or ["a", "b"].

    Parsing a tokenizer takes half a second, so it is done once for each `state` of the file.
    """
    tokenizer = files._settings("tokenizer.json")
    model = dict(tokenizer["model"])
    model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []]
    added = sorted((token["id"], token["content"]) for token in tokenizer.get("added_tokens") or [])
    shaping = [model["vocab"], model["merges"], added, tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")]
    return hashlib.sha256(json.dumps(shaping, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
