"""A vLLM teacher's identity in request keys: which of its settings shape an answer, and which do not.

| part of the identity                  | not part of it                                                                |
| the weights by content or, if they    | `check`, `timeouts`, `base_urls`, `api_key_env`: they say how a server is     |
| are not local, model and revision     | reached and checked                                                           |
| `serve.dtype`, `serve.quantization`,  | all other settings of `serve`: the server's capacity and where it runs        |
| if they are not the defaults          | `served_name`: another name for `teacher.model`, which parity verifies        |

So answers are found whether or not parity is checked. A running server does not report its dtype or quantization: its
answers count as those of a server started by `serve`, and vice versa.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from stillhouse.models.files import ModelFiles
from stillhouse.records import TeacherIdentity, content_hash
from stillhouse.teachers.base import FormerIdentity, OmittedSetting
from stillhouse.teachers.serving.vllm_server import ServeSettings

_COMPUTING = ("dtype", "quantization")


def vllm_identity(files: ModelFiles, serve: ServeSettings | None, fingerprint: str | None) -> TeacherIdentity:
    """Return the teacher's identity; `serve` is None for servers that are already running."""
    shaping = {
        name: value
        for name in _COMPUTING
        if serve is not None and (value := getattr(serve, name)) != ServeSettings.model_fields[name].default
    }
    return TeacherIdentity(
        kind="vllm",
        model=files.name,
        revision=files.revision,
        fingerprint=fingerprint,
        content_sha256=files.content_sha256 if files.has_weights else None,
        options_sha256=content_hash(shaping) if shaping else None,
        tokenizer_sha256=files.tokenizer_sha256,
        chat_template_sha256=files.chat_template_sha256,
        vocabulary_size=files.vocabulary_size,
        continuing=files.continuing,
    )


def former_vllm_identities(
    files: ModelFiles, serve: ServeSettings | None, stored: Callable[[], Sequence[TeacherIdentity]]
) -> Sequence[FormerIdentity]:
    """Return other names under which this teacher's answers may be stored; `stored` reads the versions' teachers.

    Earlier releases used the model's name if `check.parity` was false, and samples of the weights if it was true. They left
    `serve.dtype` and `serve.quantization` out.
    """
    current = vllm_identity(files, serve, None)
    contents: list[str | None] = [current.content_sha256, None]
    options = [current.options_sha256, None]
    if files.has_weights:
        contents.append(files.sampled_sha256)
    if serve is None or not files.has_weights:
        same_model = [one for one in stored() if _same_model(current, one)]
        contents += [] if files.has_weights else [one.content_sha256 for one in same_model]
        options += [] if serve is not None else [one.options_sha256 for one in same_model]
    omitted_settings = () if serve is None else tuple(_omitted_setting(serve, name) for name in _COMPUTING)
    return [
        FormerIdentity(
            replace(current, content_sha256=content, options_sha256=option),
            omitted_settings if option != current.options_sha256 or option is None else (),
        )
        for content in dict.fromkeys(contents)
        for option in dict.fromkeys(options)
        if (content, option) != (current.content_sha256, current.options_sha256)
    ]


def _omitted_setting(serve: ServeSettings, name: str) -> OmittedSetting:
    return OmittedSetting(
        f"teacher.options.serve.{name}", getattr(serve, name), ServeSettings.model_fields[name].default
    )


def _same_model(one: TeacherIdentity, other: TeacherIdentity) -> bool:
    """Whether two identities name the same_model model, as far as can be known without its weights."""
    compared = ("kind", "model", "revision", "tokenizer_sha256", "chat_template_sha256", "vocabulary_size")
    return all(getattr(one, name) == getattr(other, name) for name in compared)
