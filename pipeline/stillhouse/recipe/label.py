"""The part of a recipe that says how prompts become completions, and which part of the teacher's distribution is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stillhouse.records import EncodingName
from stillhouse.settings import Settings


class SamplingSettings(Settings):
    """How the teacher draws its tokens; part of every request's key."""

    temperature: float = Field(default=0.7, ge=0)  # 0: always the most likely token
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1)


class SoftSettings(Settings):
    """Which part of the teacher's distribution is kept at every completion position."""

    encoding: EncodingName = "top-k"
    k: int | None = Field(default=None, ge=1)  # of top-k: the most likely tokens; 32 where nothing is said
    draws: int | None = Field(default=None, ge=1, le=65_535)  # of sampled: tokens drawn at random; 50 by default

    @model_validator(mode="before")
    @classmethod
    def _default_size(cls, given: Any) -> Any:
        """The size that the encoding has where none is given."""
        if not isinstance(given, Mapping):
            return given
        own, other, size = ("draws", "k", 50) if given.get("encoding") == "sampled" else ("k", "draws", 32)
        if given.get(own) is None and given.get(other) is None:
            return {**given, own: size}
        return given

    @model_validator(mode="after")
    def _size_of_this_encoding(self) -> SoftSettings:
        if self.encoding == "sampled" and (self.k is not None or self.draws is None):
            raise ValueError(
                f"encoding is 'sampled' and k is {self.k}: sampled labels have no k, give the number of draws in its "
                "place, {encoding: sampled, draws: 50}, or set encoding to top-k"
            )
        if self.encoding == "top-k" and (self.draws is not None or self.k is None):
            raise ValueError(
                f"encoding is 'top-k' and draws is {self.draws}: top-k labels draw nothing, give the number of tokens in "
                "its place, {encoding: top-k, k: 32}, or set encoding to sampled"
            )
        return self

    def __str__(self) -> str:
        return f"{self.encoding}, k = {self.k}" if self.encoding == "top-k" else f"{self.encoding}, {self.draws} draws"


def encoding_of(soft: SoftSettings | None) -> EncodingName | None:
    """Which encoding soft labels have; None for text alone."""
    return soft.encoding if soft else None


class LimitSettings(Settings):
    """What the teacher's server allows."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)


class RunnerSettings(Settings):
    """Who asks the teacher: this process, or others, on as many machines as there are (docs/scale.md)."""

    kind: Literal["local", "work-pool", "ray"] = "local"
    workers: int = Field(default=2, ge=1)  # parts that are labelled at once; limits are shared among so many
    shards: int = Field(default=40, ge=1)  # a part, at the most: fewer where else some workers had none
    deployment: str = Field(default="label/part", pattern=r"^[^/]+/[^/]+$")  # of a work pool: what labels a part
    address: str | None = None  # of a Ray cluster; None: RAY_ADDRESS, or the one of this machine

    @field_validator("address")
    @classmethod
    def _can_be_an_address(cls, address: str | None) -> str | None:
        if address is None:
            return None
        address = address.strip()
        _, _, port = address.rpartition(":")
        if re.search(r"\s", address) or (port.isdecimal() and not 0 < int(port) < 65_536):
            raise ValueError("give the address of a Ray cluster as host:port, the port from 1 to 65535")
        return address


class LabelSettings(Settings):
    """How prompts become completions."""

    mode: Literal["generate", "score"] = "generate"  # score: the teacher is forced along the reference
    samples: int = Field(default=1, ge=1)
    sampling: SamplingSettings = SamplingSettings()
    soft: SoftSettings | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)  # of an API: tokens by text, kept as it gives them
    response_format: dict[str, Any] | None = None  # as OpenAI's API has it, for instance a JSON schema
    shard_size: int = Field(default=1000, ge=1)  # prompts a shard
    concurrency: int = Field(default=64, ge=1)  # requests in flight
    limits: LimitSettings = LimitSettings()
    runner: RunnerSettings = RunnerSettings()
    patience: float = Field(default=300, gt=0)  # seconds that a server may be away or refuse everybody
    refusals_in_a_row: int | None = Field(default=5, ge=1)  # alike, with no answer between: the run ends; null: never
    budget_usd: float | None = Field(default=None, gt=0)  # for this dataset, all its runs and versions together
    max_rejected: float = Field(default=0.05, ge=0, le=1)  # share of requests; above it the exit status is 3

    @model_validator(mode="after")
    def _one_reference_one_score(self) -> LabelSettings:
        if self.mode == "score" and self.samples != 1:
            raise ValueError(f"mode is 'score' and samples is {self.samples}: scoring draws nothing, set samples to 1")
        return self

    @model_validator(mode="after")
    def _limits_can_be_shared(self) -> LabelSettings:
        shares = 1 if self.runner.kind == "local" else self.runner.workers
        for name, limit in self.limits:
            if limit is not None and limit < shares:
                raise ValueError(
                    f"limits.{name} is {limit}, which {shares} workers cannot share: set runner.workers to {limit} or less"
                )
        return self
