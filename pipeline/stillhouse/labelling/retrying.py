"""Retry requests that a teacher error rejected: `stillhouse label RECIPE --retry-rejected [REASON...]`.

    >>> retry = Retry(frozenset({"timeout"}))       # no reason: all of them
    >>> retry.selects("timeout", answered=False), retry.selects("empty", answered=True)
    (True, False)

Only rejections of the stage `teacher` are retried, in a new version of the same plan. Rejections that came with an answer
(an empty text, a refusal in words) were paid for, and are retried only if their reason is named. What a filter rejected has
an answer too: the filters run again when they change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError

STAGE = "teacher"
COLUMNS = ("stage", "reason", "completion")  # the columns that decide whether a rejection is retried


@dataclass(frozen=True)
class Retry:
    """Which teacher rejections to retry: those with the given reasons, or all if none is given."""

    reasons: frozenset[str] = frozenset()

    @classmethod
    def from_reasons(cls, reasons: Iterable[str] | None) -> Retry | None:
        """Return a retry of these reasons, of all if there are none; None for None."""
        return None if reasons is None else cls(frozenset(reasons))

    def selects(self, reason: str, *, answered: bool) -> bool:
        """Whether to retry a rejection with this reason; `answered`: it came with an answer."""
        return reason in self.reasons if self.reasons else not answered

    def check(self, found: Counter[tuple[str, bool]]) -> None:
        """Refuse a reason for which nothing was rejected.

        Args:
            found: rejection counts of the teacher, as `teacher_rejections` returns them.

        Raises:
            UsageError: a reason is not among them.
        """
        counts: Counter[str] = Counter()
        for (reason, _), count in found.items():
            counts[reason] += count
        for reason in sorted(self.reasons - counts.keys()):
            listed = ", ".join(f"{name} ({count:,})" for name, count in sorted(counts.items())) or "none"
            raise UsageError(
                f"no request was rejected by the teacher for this reason; reasons in this dataset: {listed}",
                setting="--retry-rejected",
                value=reason,
                fix="name one of these, or none to retry all; to filter the stored answers again, change `quality`",
            )


def teacher_rejections(dataset: Dataset) -> Counter[tuple[str, bool]]:
    """Count a version's requests rejected by teacher errors, by (reason, whether an answer came with it)."""
    found: Counter[tuple[str, bool]] = Counter()
    for entry in dataset.files("rejected"):
        with dataset.open(entry) as parquet:
            rows = parquet.read(columns=list(COLUMNS))
        found.update((reason, answered) for by_teacher, reason, answered in rejections_in(rows) if by_teacher)
    return found


def rejections_in(rows: pa.RecordBatch | pa.Table) -> Iterator[tuple[bool, str, bool]]:
    """Yield for each row: whether the teacher rejected it, the reason, and whether an answer came with it."""
    stage, reason, completion = (rows[name] for name in COLUMNS)
    by_teacher, answered = pc.equal(stage, STAGE), pc.is_valid(completion)
    yield from zip(by_teacher.to_pylist(), reason.to_pylist(), answered.to_pylist(), strict=True)
