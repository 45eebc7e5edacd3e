"""The `evaluate` part of a recipe: the settings of the report.

evaluate:
  baselines: [untrained, gold, black-box]
  metrics: [exact-match, {kind: rouge, variant: rougeL}]
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from stillhouse.settings import Settings


class MetricSettings(Settings):
    """One task metric; all keys except `kind` and `name` are options, which the metric checks."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = Field(description="the metric; docs/evaluation.md lists them")
    name: str | None = Field(default=None, description="the column's header; None: the metric's name")

    @model_validator(mode="before")
    @classmethod
    def _expand_short_form(cls, given: Any) -> Any:
        """Accept `chrf` as short for {kind: chrf}."""
        return {"kind": given} if isinstance(given, str) else given

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class EvaluateSettings(Settings):
    """What the report compares and measures."""

    baselines: tuple[Literal["untrained", "black-box", "gold"], ...] = Field(
        default=("untrained", "black-box"), description="models measured next to teacher and student"
    )
    limit: int = Field(default=200, ge=1, description="held-out rows to measure on; every model answers their prompts")
    metrics: tuple[MetricSettings, ...] = Field(
        default=(), description="task metrics of the answers to the prompts with a reference"
    )
    batch_size: int = Field(default=16, ge=1, description="prompts answered together, except when timing")
    answers: int = Field(default=20, ge=1, description="held-out prompts whose answers the report shows side by side")
    latency_prompts: int = Field(
        default=10, ge=2, description="prompts answered one at a time, for latency and tokens per second"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="data type of the weights while measuring"
    )
    near_duplicate: float = Field(
        default=0.8, gt=0, le=1, description="Jaccard similarity from which a prompt is a near duplicate"
    )
    keep: float = Field(
        default=0.97, gt=0, le=1, description="share of the teacher's score that a sweep's student must keep"
    )
    reports: str = Field(default="data/reports", description="folder for reports: <reports>/<name>")
