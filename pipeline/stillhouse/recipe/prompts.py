"""The `prompts` part of a recipe: where the prompts come from, and which of them are held out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.settings import Settings


class CompletionOrigin(Settings):
    """What wrote the completions that are scored."""

    student: str = Field(description="content hash of the model that wrote them")
    dataset: str | None = Field(default=None, description="the dataset version that the prompts are from: name/v001")
    teacher_share: float = Field(
        default=0.0, ge=0, lt=1, description="share of the teacher in the distribution that they were drawn from"
    )


class PromptSettings(Settings):
    """Where the prompts come from and which of them are held out."""

    source: str = Field(
        description="a .jsonl, .csv, .tsv or .parquet file, local or at a URL, the folder of a dataset version, or a hub "
        "data set's id"
    )
    config: str | None = Field(default=None, description="configuration of a hub data set; None: it has only one")
    split: str = Field(default="train", description="split to read from a hub data set")
    template: str | None = Field(
        default=None,
        description="Jinja file (.j2) that makes the user message from a row; None: the rows have `prompt` or `messages`",
    )
    system: str | None = Field(
        default=None, description="system message for prompts without one; None: no system message"
    )
    columns: dict[str, str] = Field(default_factory=dict, description="name in the template -> column of the row")
    reference: str | None = Field(
        default=None, description="column with the gold answer; None: `reference`, if it exists"
    )
    score_tokens: str | None = Field(
        default=None,
        description="score mode: column with a completion's token ids, which are the teacher's; None: the reference",
    )
    written_by: CompletionOrigin | None = Field(
        default=None, description="what wrote the tokens of score_tokens, for the manifest; None: not known"
    )
    last_turn: Literal["refuse", "reference", "continue"] = Field(
        default="refuse", description="how to treat a final assistant turn"
    )
    limit: int | None = Field(default=None, ge=1, description="maximum number of prompts; None: all")
    holdout: float = Field(
        default=0.1, ge=0, lt=1, description="share of prompts for validation, chosen by content hash"
    )
