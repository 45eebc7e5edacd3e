"""The `dataset` part of a recipe: the dataset that labelling writes and that students learn from."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stillhouse.errors import UsageError
from stillhouse.settings import SettingError, Settings
from stillhouse.storage.location import location

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # of a folder's name
NAME = rf"^{NAME_PATTERN}$"
VERSION = re.compile(r"v(\d+)")  # of a dataset, as in outputs


class DatasetSettings(Settings):
    """The dataset to write or read."""

    root: str = Field(default="data/labels", description="a folder, or a URL such as s3://bucket/labels")
    name: str = Field(pattern=NAME, description="the dataset's name: letters, digits, `.`, `_` and `-`")
    version: int | None = Field(default=None, ge=1, description="version to learn from; None: the newest")
    licence: str | None = Field(
        default=None,
        description="licence in the dataset's card, an SPDX identifier such as apache-2.0; None: not stated",
    )
    journal: str | None = Field(
        default=None,
        description="local folder of the journal; None: beside the versions, or in data/journals if root is a URL",
    )
    when_busy: Literal["leave", "wait"] = Field(
        default="leave",
        description="if another run is writing the dataset, leave: stop with an error; wait: start when that run ends",
    )
    patience: float = Field(default=3600, gt=0, description="maximum wait for the other run, seconds (when_busy: wait)")

    @field_validator("version", mode="before")
    @classmethod
    def _parse_version(cls, given: Any) -> Any:
        """Accept `v002`, the form in outputs, as 2."""
        match = VERSION.fullmatch(given.strip()) if isinstance(given, str) else None
        return int(match[1]) if match else given

    @model_validator(mode="after")
    def _root_and_journal_are_usable(self) -> DatasetSettings:
        try:
            location(self.root)
        except UsageError as error:
            raise SettingError(str(error), setting="root") from None
        if self.journal is not None and "://" in self.journal:
            raise SettingError(
                "it is a URL, and a journal must be on a local disk",
                setting="journal",
                fix="set it to a folder of this machine",
            )
        return self

    @property
    def gold(self) -> DatasetSettings:
        """The dataset of the same prompts with their references as completions."""
        return self.model_copy(update={"name": f"{self.name}-gold", "version": None})
