"""A language model in this process, causal or encoder-decoder, run by the transformers library: text and soft labels.

    teacher: {kind: transformers, model: data/models/smollm2-135m-instruct, options: {batch_size: 32}}

Soft labels come from the model's raw logits, before temperature and top-p; they are recorded during generation, so they
need no second pass. The model is loaded at the first request.

Both encodings are supported, `sampled` by random draws from the full distribution. The draws of a request are seeded by the
recipe's seed and the request, and do not depend on the other requests in its batch; models/soft_labels.py says what may
still differ between machines.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from stillhouse.errors import TemplateRefused
from stillhouse.models.checks import refuse_untrusted_code, refuse_without_decoder_start
from stillhouse.models.files import ModelFiles
from stillhouse.models.find import labelling_files
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import SampledLabels, SoftLabels, TeacherIdentity, TokenTrace, content_hash
from stillhouse.settings import Settings, parse_options
from stillhouse.teachers.base import (
    Answer,
    AnswerSettings,
    Forced,
    FormerIdentity,
    OmittedSetting,
    Outcome,
    Refusal,
    Request,
    refuse_unknown_tokens,
    template_refusal,
)
from stillhouse.teachers.prices import FREE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LogitsProcessor

    from stillhouse.models.layout import TokenBatch
    from stillhouse.models.load import LanguageModel

log = logging.getLogger(__name__)

_SCORING_BYTES = 1 << 29  # most bytes of logits in one scoring pass


class TransformersOptions(Settings):
    """`teacher.options` of this kind."""

    batch_size: int = Field(default=32, ge=1, description="prompts per batch")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="data type of the weights")
    device: str = Field(
        default="auto", description="auto: the accelerator if there is one; or a device such as cpu or cuda:1"
    )
    trust_remote_code: bool = Field(
        default=False, description="run code that comes with the model; only for code you have read"
    )


def open_teacher(settings: TeacherSettings, label: LabelSettings, seed: int) -> TransformersTeacher:
    """Find the model's files and check the options; nothing is loaded yet."""
    options = parse_options("teacher.options", settings.options, TransformersOptions)
    return TransformersTeacher(checked_files(settings, options), options, label, seed)


def checked_files(settings: TeacherSettings, options: TransformersOptions) -> ModelFiles:
    """Return the files of a model that labels.

    Raises:
        RecipeError: the model needs code of its own that is not trusted, or has no decoder start token.
        TeacherUnavailable: the model cannot be found.
    """
    files = labelling_files(settings, weights=False)
    trust = "teacher.options.trust_remote_code"
    refuse_untrusted_code(files, "teacher.model", trust, trusted=options.trust_remote_code)
    refuse_without_decoder_start(files, "teacher.model")
    return labelling_files(settings)


def load(files: ModelFiles, options: TransformersOptions) -> LanguageModel:
    """Load a model as the options say."""
    from stillhouse.models.load import load_language_model

    return load_language_model(
        files.folder, dtype=options.dtype, device=options.device, trust_remote_code=options.trust_remote_code
    )


@dataclass(frozen=True)
class _Tokens:
    """A request that fits the context window, as token ids."""

    index: int  # among the requests of the call
    request: Request
    prompt: list[int]
    forced: list[int]  # the text to score, in score mode


class TransformersTeacher:
    """A teacher that runs in this process; the protocol is `Teacher` in base.py."""

    parallel = 1  # one model runs one batch at a time
    price = FREE

    def __init__(self, files: ModelFiles, options: TransformersOptions, label: LabelSettings, seed: int) -> None:
        self._files = files
        self._options = options
        self._label = label
        self._seed = seed

    @property
    def batch_size(self) -> int:
        return self._options.batch_size

    @cached_property
    def identity(self) -> TeacherIdentity:
        samples_text = self._label.mode == "generate" and self._label.sampling.temperature > 0
        samples_labels = self._label.soft is not None and self._label.soft.draws is not None
        return TeacherIdentity(
            kind="transformers",
            model=self._files.name,
            revision=self._files.revision,
            content_sha256=self._files.content_sha256,
            options_sha256=content_hash({"dtype": self._options.dtype}),
            tokenizer_sha256=self._files.tokenizer_sha256,
            chat_template_sha256=self._files.chat_template_sha256,
            vocabulary_size=self._files.vocabulary_size,
            continuing=self._files.continuing,
            seed=self._seed if samples_text or samples_labels else None,
            encoder_decoder=self._files.is_encoder_decoder,
        )

    def former(self, stored: Callable[[], Sequence[TeacherIdentity]]) -> Sequence[FormerIdentity]:
        """Return the name that earlier releases used: from samples of the weight files, and without the seed."""
        seeded = self.identity.seed is not None
        return [FormerIdentity(self._sampled_identity, (OmittedSetting("seed", self._seed, 0),) if seeded else ())]

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        return await asyncio.to_thread(self._answer, requests)

    async def close(self) -> None:
        """Free the model's memory."""
        self.__dict__.pop("_lm", None)

    @cached_property
    def _lm(self) -> LanguageModel:
        lm = load(self._files, self._options)
        if lm.tokenizer.chat_template is None and not lm.is_encoder_decoder:
            log.warning("the tokenizer of %s has no chat template: prompts are sent as plain text", self._files.name)
        return lm

    def _answer(self, requests: Sequence[Request]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        fitting: list[_Tokens] = []
        for index, request in enumerate(requests):
            try:
                tokens = self._encode(index, request)
            except TemplateRefused as error:
                outcomes[index] = template_refusal(error)
                continue
            refusal = self._too_long(tokens)
            if refusal is not None:
                outcomes[index] = refusal
            else:
                fitting.append(tokens)
        if fitting:
            answers = self._generate(fitting) if self._label.mode == "generate" else self._score(fitting)
            outcomes |= {tokens.index: answer for tokens, answer in zip(fitting, answers, strict=True)}
        return [outcomes[index] for index in range(len(requests))]

    def _encode(self, index: int, request: Request) -> _Tokens:
        from stillhouse.models.load import encode_prompt

        prompt = encode_prompt(self._lm.tokenizer, request.prompt.messages)
        return _Tokens(index, request, prompt, self._forced_ids(request.forced))

    def _forced_ids(self, forced: Forced | None) -> list[int]:
        """Return the token ids of the completion to score.

        Raises:
            TeacherUnavailable: a given id is not one of the model's tokens, so that no row can be scored rightly.
        """
        from stillhouse.models.load import encode_completion

        if forced is None or isinstance(forced, str):
            return [] if forced is None else encode_completion(self._lm, forced)
        refuse_unknown_tokens(forced, self._files.vocabulary_size)
        return list(forced)

    def _too_long(self, tokens: _Tokens) -> Refusal | None:
        answer = len(tokens.forced) or self._label.sampling.max_tokens
        if self._lm.fits(len(tokens.prompt), answer):
            return None
        prompt, window = len(tokens.prompt), self._lm.window
        if self._lm.is_encoder_decoder:
            detail = f"the prompt has {prompt} tokens and the answer {answer}; the model allows {window} for each"
        else:
            detail = (
                f"the prompt has {prompt} tokens and the answer needs {answer}: more than the model's context window of "
                f"{window}"
            )
        return Refusal("too-long", detail)

    def _generate(self, batch: Sequence[_Tokens]) -> list[Answer]:
        from stillhouse.models.generate import GenerationHooks, Sampling, generate
        from stillhouse.models.soft_labels import SoftLabelRecorder, label_collector

        sampling, soft = self._label.sampling, self._label.soft
        seeds = [int(content_hash([self._seed, self._seeding_key(tokens.request)])[:15], 16) for tokens in batch]
        recorder = (
            SoftLabelRecorder(label_collector(soft, [self._soft_seed(t.request) for t in batch])) if soft else None
        )
        prompts = [tokens.prompt for tokens in batch]
        hooks = recorder.hooks if recorder else GenerationHooks()
        generated = generate(
            self._lm,
            prompts,
            max_tokens=sampling.max_tokens,
            sampling=Sampling(sampling.temperature, sampling.top_p, seeds) if sampling.temperature > 0 else None,
            hooks=replace(hooks, processors=[*self._mixed_in(prompts), *hooks.processors]),
        )
        answers = []
        for row, (tokens, completion) in enumerate(zip(batch, generated, strict=True)):
            labels = recorder.labels(row, len(completion)) if recorder else None
            answers.append(self._as_answer(tokens, completion, labels))
        return answers

    def _score(self, batch: Sequence[_Tokens]) -> list[Answer]:
        """Score the references by teacher forcing, in passes whose logits fit in memory."""
        import torch

        from stillhouse.models.layout import make_token_batch
        from stillhouse.models.soft_labels import chosen_logprobs

        longest = max(len(tokens.prompt) + len(tokens.forced) for tokens in batch)
        rows = max(1, _SCORING_BYTES // (4 * longest * self._files.vocabulary_size))
        answers = []
        for start in range(0, len(batch), rows):
            part = batch[start : start + rows]
            layout = make_token_batch(
                [tokens.prompt for tokens in part],
                [tokens.forced for tokens in part],
                self._lm.pad_id,
                self._lm.start_id,
            ).to(self._lm.device)
            with torch.inference_mode():
                logits = self._completion_logits(layout)
            chosen = chosen_logprobs(logits, layout.targets).cpu().numpy().astype(np.float32)
            ends = np.cumsum([len(tokens.forced) for tokens in part])
            for tokens, end in zip(part, ends, strict=True):
                tokens_slice = slice(int(end) - len(tokens.forced), int(end))
                soft = self._soft_labels(logits[tokens_slice], tokens.request)
                answers.append(self._as_answer(tokens, tokens.forced, (soft, chosen[tokens_slice])))
        return answers

    def _mixed_in(self, prompts: Sequence[Sequence[int]]) -> Sequence[LogitsProcessor]:
        """Return what changes the model's distribution of the next token in each step; here nothing does."""
        return ()

    def _completion_logits(self, layout: TokenBatch) -> Tensor:
        """Return the logits of each completion token: (completion tokens, vocabulary)."""
        from stillhouse.models.layout import completion_logits

        return completion_logits(self._lm.model, layout)

    def _soft_labels(self, logits: Tensor, request: Request) -> SoftLabels | SampledLabels | None:
        """Return the soft labels of one scored request; logits is (completion tokens, vocabulary)."""
        from stillhouse.models.soft_labels import sampled, top_k

        soft = self._label.soft
        if soft is None:
            return None
        if soft.k is not None:
            return top_k(logits, soft.k).soft_labels()
        return sampled(logits, soft.draws or 0, self._soft_seed(request))

    def _soft_seed(self, request: Request) -> int:
        """Return the seed of a request's sampled labels, different from the seed of its text."""
        return int(content_hash([self._seed, self._seeding_key(request), "soft"])[:15], 16)

    @cached_property
    def _sampled_identity(self) -> TeacherIdentity:
        """The teacher's identity as earlier releases computed it."""
        return replace(self.identity, content_sha256=self._files.sampled_sha256, seed=None)

    @cached_property
    def _seeding_settings(self) -> AnswerSettings:
        return AnswerSettings.from_label(self._sampled_identity, self._label)

    def _seeding_key(self, request: Request) -> str:
        """Return the request's key in earlier releases; it seeds the draws, so a seed gives the same draws as before."""
        return self._seeding_settings.key(request.prompt.id, request.sample, request.forced)

    def _as_answer(
        self,
        tokens: _Tokens,
        completion: list[int],
        labels: tuple[SoftLabels | SampledLabels | None, np.ndarray] | None,
    ) -> Answer:
        from stillhouse.models.load import decode_completion

        trace = None
        if labels is not None:
            trace = TokenTrace(
                prompt_token_ids=np.asarray(tokens.prompt, dtype=np.int32),
                completion_token_ids=np.asarray(completion, dtype=np.int32),
                completion_logprobs=labels[1],
                soft=labels[0],
            )
        forced = tokens.request.forced
        return Answer(
            text=forced if isinstance(forced, str) else decode_completion(self._lm, completion, tokens.request.prompt),
            finish_reason="stop" if completion[-1] in self._lm.end_ids else "length",
            prompt_tokens=len(tokens.prompt),
            completion_tokens=len(completion),
            trace=trace,
        )
