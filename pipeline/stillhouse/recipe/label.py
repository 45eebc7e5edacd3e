"""The `label` part of a recipe: how the teacher labels prompts, and which part of its distribution is stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stillhouse.records import EncodingName
from stillhouse.settings import SettingError, Settings


class SamplingSettings(Settings):
    """How the teacher samples its tokens; part of every request's key."""

    temperature: float = Field(default=0.7, ge=0, description="sampling temperature; 0: greedy decoding")
    top_p: float = Field(default=1.0, gt=0, le=1, description="share of the distribution that tokens are sampled from")
    max_tokens: int = Field(default=256, ge=1, description="maximum tokens per completion")


class SoftSettings(Settings):
    """Which part of the teacher's distribution is stored at every completion position."""

    encoding: EncodingName = Field(
        default="top-k",
        description="top-k: the most likely tokens with their log-probabilities; sampled: random draws with their counts",
    )
    k: int | None = Field(default=None, ge=1, description="top-k: number of most likely tokens; 32 by default")
    draws: int | None = Field(
        default=None, ge=1, le=65_535, description="sampled: number of tokens drawn at random; 50 by default"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_size(cls, given: Any) -> Any:
        """Fill in the encoding's default size if none is given."""
        if not isinstance(given, Mapping):
            return given
        own, other, size = ("draws", "k", 50) if given.get("encoding") == "sampled" else ("k", "draws", 32)
        if given.get(own) is None and given.get(other) is None:
            return {**given, own: size}
        return given

    @model_validator(mode="after")
    def _size_of_this_encoding(self) -> SoftSettings:
        if self.encoding == "sampled" and (self.k is not None or self.draws is None):
            raise SettingError(
                "encoding is 'sampled', and sampled labels have no k",
                setting="k",
                value=self.k,
                fix="give the number of draws instead, {encoding: sampled, draws: 50}, or set encoding to top-k",
            )
        if self.encoding == "top-k" and (self.draws is not None or self.k is None):
            raise SettingError(
                "encoding is 'top-k', and top-k labels have no draws",
                setting="draws",
                value=self.draws,
                fix="give the number of tokens instead, {encoding: top-k, k: 32}, or set encoding to sampled",
            )
        return self

    def __str__(self) -> str:
        return f"{self.encoding}, k = {self.k}" if self.encoding == "top-k" else f"{self.encoding}, {self.draws} draws"


def encoding_of(soft: SoftSettings | None) -> EncodingName | None:
    """Return the encoding of the soft labels; None for text only."""
    return soft.encoding if soft else None


class LimitSettings(Settings):
    """Rate limits of the teacher's server; None: unlimited."""

    requests_per_minute: int | None = Field(
        default=None, ge=1, description="maximum requests per minute; None: no limit"
    )
    tokens_per_minute: int | None = Field(default=None, ge=1, description="maximum tokens per minute; None: no limit")


class RunnerSettings(Settings):
    """Where labelling runs: in this process, or in workers on one or more machines (docs/scale.md)."""

    kind: Literal["local", "work-pool", "ray"] = Field(
        default="local",
        description="local: this process; work-pool: workers of a Prefect work pool; ray: a Ray cluster",
    )
    workers: int = Field(
        default=2, ge=1, description="parts labelled at once; rate limits are divided among the workers"
    )
    shards: int = Field(
        default=40,
        ge=1,
        description="maximum number of shards per part; parts are smaller if a worker would otherwise get none",
    )
    deployment: str = Field(
        default="label/part", pattern=r"^[^/]+/[^/]+$", description="work pool: deployment that labels a part"
    )
    address: str | None = Field(
        default=None,
        description="address of a Ray cluster, host:port; None: RAY_ADDRESS, or the cluster on this machine",
    )

    @field_validator("address")
    @classmethod
    def _is_host_and_port(cls, address: str | None) -> str | None:
        if address is None:
            return None
        address = address.strip()
        _, _, port = address.rpartition(":")
        if re.search(r"\s", address) or (port.isdecimal() and not 0 < int(port) < 65_536):
            raise SettingError(
                "it is not the address of a Ray cluster",
                value=address,
                fix="give it as host:port, with a port from 1 to 65535",
            )
        return address


class BatchSettings(Settings):
    """How batch jobs are made and awaited (docs/batches.md); the provider's own limits are in `teacher.options.batch`."""

    requests: int | None = Field(
        default=None, ge=1, description="maximum requests of a job; None: as many as the provider allows"
    )
    at_once: int = Field(default=8, ge=1, description="maximum jobs that the provider has at the same time")
    poll: float = Field(default=60.0, gt=0, description="seconds between two looks at the jobs")
    unseen: float = Field(
        default=60.0,
        ge=0,
        description="seconds after which a job that a killed run was submitting must be listed by the provider, or was not "
        "made",
    )
    deadline: float | None = Field(
        default=None,
        gt=0,
        description="delivery auto: hours after which a job is cancelled and the rest sent online; None: when it ends",
    )


class LabelSettings(Settings):
    """How the teacher turns prompts into completions."""

    mode: Literal["generate", "score"] = Field(
        default="generate", description="generate: the teacher answers; score: it scores the reference, token by token"
    )
    samples: int = Field(default=1, ge=1, description="completions per prompt")
    sampling: SamplingSettings = Field(default=SamplingSettings(), description="how the teacher samples tokens")
    soft: SoftSettings | None = Field(default=None, description="soft labels to store; None: text only")
    top_logprobs: int | None = Field(
        default=None,
        ge=0,
        le=20,
        description="number of alternatives per token to request from an API; stored as text, as returned",
    )
    response_format: dict[str, Any] | None = Field(
        default=None, description="response format, as in OpenAI's API, for instance a JSON schema; None: free text"
    )
    shard_size: int = Field(default=1000, ge=1, description="prompts per shard")
    delivery: Literal["online", "batch", "auto"] = Field(
        default="online",
        description="online: one request at a time; batch: jobs of many, answered within a day at a lower price; auto: by "
        "batch once, and what comes back unanswered online",
    )
    batch: BatchSettings = Field(default=BatchSettings(), description="how batch jobs are made and awaited")
    concurrency: int = Field(default=64, ge=1, description="maximum requests in flight")
    limits: LimitSettings = Field(default=LimitSettings(), description="rate limits of the teacher's server")
    runner: RunnerSettings = Field(default=RunnerSettings(), description="who labels: this process, or several workers")
    patience: float = Field(default=300, gt=0, description="seconds without any answer after which the run ends")
    refusals_in_a_row: int | None = Field(
        default=5, ge=1, description="equal refusals in a row that end the run; None: never"
    )
    budget_usd: float | None = Field(
        default=None,
        gt=0,
        description="maximum US dollars for all runs and versions of this dataset together; None: no limit",
    )
    max_rejected: float = Field(
        default=0.05, ge=0, le=1, description="share of requests above which the exit status is 3"
    )

    @model_validator(mode="after")
    def _one_sample_if_scoring(self) -> LabelSettings:
        if self.mode == "score" and self.samples != 1:
            raise SettingError(
                "mode is 'score', and scoring samples no completions",
                setting="samples",
                value=self.samples,
                fix="set samples to 1",
            )
        return self

    @model_validator(mode="after")
    def _limits_can_be_divided(self) -> LabelSettings:
        shares = 1 if self.runner.kind == "local" else self.runner.workers
        for name, limit in self.limits:
            if limit is not None and limit < shares:
                raise SettingError(
                    f"it cannot be divided among {shares} workers",
                    setting=f"limits.{name}",
                    value=limit,
                    fix=f"set label.runner.workers to {limit} or less",
                )
        return self
