"""The `evaluate` part of a recipe: what the report measures.

evaluate:
  baselines: [untrained, gold, black-box]
  metrics: [exact-match, {kind: rouge, variant: rougeL}]
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from stillhouse.settings import Settings


class MetricSettings(Settings):
    """One metric of the task; every key but `kind` and `name` is an option that the metric itself checks."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str
    name: str | None = None  # the column's header; None: the metric's own

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, given: Any) -> Any:
        """`chrf` is short for {kind: chrf}."""
        return {"kind": given} if isinstance(given, str) else given

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class EvaluateSettings(Settings):
    """What the report measures."""

    baselines: tuple[Literal["untrained", "black-box", "gold"], ...] = ("untrained", "black-box")
    limit: int = Field(default=200, ge=1)  # held-out rows that quality is measured on, and whose prompts are answered
    metrics: tuple[MetricSettings, ...] = ()  # of answers to all of these rows that have a reference
    batch_size: int = Field(default=16, ge=1)  # prompts answered together, where no time is taken
    answers: int = Field(default=20, ge=1)  # held-out prompts whose answers stand side by side in the report
    latency_prompts: int = Field(default=10, ge=2)  # answered one at a time, for latency and tokens a second
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    near_duplicate: float = Field(default=0.8, gt=0, le=1)  # Jaccard similarity from which a prompt is a near duplicate
    keep: float = Field(default=0.97, gt=0, le=1)  # share of the teacher's first metric (sweep)
    reports: str = "data/reports"
