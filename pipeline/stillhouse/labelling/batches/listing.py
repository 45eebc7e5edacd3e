"""The batch jobs of all datasets, as `stillhouse jobs` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.dataset.store import JOURNALS
from stillhouse.errors import UsageError
from stillhouse.formatting import format_usd
from stillhouse.labelling.batches.jobs import BatchJob, read_jobs
from stillhouse.storage.location import Location

_HEADERS = ("job", "dataset", "state", "requests", "answered", "cost", "made")


@dataclass(frozen=True)
class ListedJob:
    """A job and the name of its dataset."""

    dataset: str
    job: BatchJob

    @property
    def state(self) -> str:
        """Its state, with the provider's word while it runs."""
        card = self.job.card
        if not card.is_open and card.remote_id is None:
            return "never submitted"
        return f"{card.state}, {card.remote_state}" if card.is_open and card.remote_state else card.state

    @property
    def cost(self) -> str:
        """What it cost; at most, while it runs."""
        card = self.job.card
        return f"at most {format_usd(card.worst_usd)}" if card.is_open else format_usd(card.spent_usd)

    def as_dict(self) -> dict[str, Any]:
        return {"dataset": self.dataset, **self.job.card.model_dump(mode="json")}

    def facts(self) -> list[list[str]]:
        """Return names and values to show."""
        card = self.job.card
        counts = f"{card.answered:,} answered, {card.rejected:,} rejected, {card.unanswered:,} to be asked again"
        pairs = {
            "job": card.id,
            "dataset": self.dataset,
            "state": self.state,
            "account": card.account,
            "model": card.model,
            "at the provider": card.remote_id or "not submitted",
            "requests": f"{card.requests:,}" + ("" if card.is_open else f": {counts}"),
            "cost": self.cost,
            "made": card.created_at[:19],
            "submitted": card.submitted_at or "",
            "settled": card.settled_at or "",
            "note": card.detail,
        }
        return [[name, value] for name, value in pairs.items() if value]


def find_jobs(root: Location) -> list[ListedJob]:
    """Return the jobs of all datasets in a folder, and of those whose journals are in data/journals, the oldest first.

    Raises:
        StorageFailed: a job cannot be read.
    """
    folders = [folder for parent in (root, JOURNALS) if isinstance(parent, Path) for folder in sorted(parent.glob("*"))]
    found = [ListedJob(folder.name, job) for folder in folders if folder.is_dir() for job in read_jobs(folder)]
    return sorted(found, key=lambda one: one.job.card.created_at)


def find_job(root: Location, id_: str) -> ListedJob:
    """Return a job by its id, or by the beginning of it.

    Raises:
        UsageError: no job, or more than one, has this id.
    """
    found = [one for one in find_jobs(root) if one.job.card.id.startswith(id_)]
    if len(found) != 1:
        problem = "several jobs begin so" if found else f"no job in {root} has this id"
        raise UsageError(problem, setting="JOB", value=id_, fix="`stillhouse jobs list` shows all")
    return found[0]


def job_lines(jobs: Sequence[ListedJob]) -> list[str]:
    """Return a table."""
    rows = [_HEADERS, *(_cells(one) for one in jobs)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADERS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(one: ListedJob) -> tuple[str, ...]:
    card = one.job.card
    answered = "" if card.is_open else f"{card.answered:,}"
    return (card.id, one.dataset, one.state, f"{card.requests:,}", answered, one.cost, card.created_at[:16])
