"""What a labelling run returns: the dataset, and how many requests it took."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.dataset.store import Dataset
from stillhouse.labelling.retrying import teacher_rejections


@dataclass(frozen=True)
class LabelResult:
    """The result of one labelling run."""

    dataset: Dataset
    sent: int  # requests answered or rejected in this run
    reused: int  # requests that already had an answer
    fresh: bool = True  # whether this run made the version; False if it was already finished

    def __str__(self) -> str:
        manifest = self.dataset.manifest
        if not self.fresh:
            return f"nothing to do: {manifest.label} already has answers to all {manifest.prompts:,} prompts"
        source = f", from {' and '.join(manifest.parents)}" if manifest.parents else ""
        return f"{manifest.label}{source}: {self.sent:,} requests sent, {self.reused:,} answered before"

    @property
    def rejected_by_teacher(self) -> int:
        """Number of requests rejected by a teacher error without an answer; `label --retry-rejected` retries them."""
        found = teacher_rejections(self.dataset)
        return sum(count for (_, answered), count in found.items() if not answered)

    @property
    def rejected_share(self) -> float:
        manifest = self.dataset.manifest
        rejected = sum(manifest.rejected.values())
        return rejected / max(1, rejected + sum(manifest.rows.values()))
